package kube

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/vishvananda/netns"
)

// dialTimeout bounds one connection through the forwarder: its other end is on this machine.
const dialTimeout = 5 * time.Second

// DialIn returns a dialler whose connections start in the network namespace at path (/proc/PID/ns/net, say). An empty
// path is this process's own. Addresses must be numeric.
func DialIn(path string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		ctx, cancel := context.WithTimeout(ctx, dialTimeout)
		defer cancel()
		if path == "" {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		type result struct {
			conn net.Conn
			err  error
		}
		// A goroutine of its own: when its thread can't be put back it ends locked, and the thread ends with it.
		done := make(chan result, 1)
		go func() {
			conn, err := dialLocked(ctx, path, network, address)
			done <- result{conn, err}
		}()
		r := <-done
		return r.conn, r.err
	}
}

func dialLocked(ctx context.Context, path, network, address string) (net.Conn, error) {
	runtime.LockOSThread()
	own, err := netns.Get()
	if err != nil {
		return nil, fmt.Errorf("open this thread's network namespace: %w", err)
	}
	defer own.Close()
	target, err := netns.GetFromPath(path)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer target.Close()
	if err := netns.Set(target); err != nil {
		return nil, fmt.Errorf("enter network namespace %s: %w", path, err)
	}
	// A numeric address is dialled on this goroutine, and so on this thread.
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if back := netns.Set(own); back == nil {
		runtime.UnlockOSThread()
	}
	return conn, err
}

// Forwarder passes TCP connections to a listener on this machine on to an address in another network namespace.
type Forwarder struct {
	listener net.Listener
	target   string
	dial     func(ctx context.Context, network, address string) (net.Conn, error)
	log      *slog.Logger

	ctx    context.Context
	cancel context.CancelFunc
	tasks  sync.WaitGroup
}

// Forward listens on listen (127.0.0.1:0 for any free port) and passes every connection on to target, dialled in the
// network namespace at netnsPath. It runs until Close.
func Forward(listen, netnsPath, target string, log *slog.Logger) (*Forwarder, error) {
	l, err := net.Listen("tcp", listen)
	if err != nil {
		return nil, fmt.Errorf("listen for connections to %s: %w", target, err)
	}
	f := &Forwarder{listener: l, target: target, dial: DialIn(netnsPath), log: log}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	f.tasks.Go(f.accept)
	return f, nil
}

// Addr is where it listens.
func (f *Forwarder) Addr() string { return f.listener.Addr().String() }

// Close ends the listener and every connection.
func (f *Forwarder) Close() error {
	f.cancel()
	err := f.listener.Close()
	f.tasks.Wait()
	return err
}

func (f *Forwarder) accept() {
	for {
		conn, err := f.listener.Accept()
		if err != nil {
			if !errors.Is(err, net.ErrClosed) {
				f.log.Error("forwarder ended", "address", f.Addr(), "error", err)
			}
			return
		}
		f.tasks.Go(func() { f.pass(conn) })
	}
}

func (f *Forwarder) pass(client net.Conn) {
	defer client.Close()
	server, err := f.dial(f.ctx, "tcp", f.target)
	if err != nil {
		f.log.Debug("forward a connection", "to", f.target, "error", err)
		return
	}
	defer server.Close()
	stop := context.AfterFunc(f.ctx, func() { client.Close(); server.Close() })
	defer stop()
	var both sync.WaitGroup
	both.Go(func() { copyHalf(server, client) })
	both.Go(func() { copyHalf(client, server) })
	both.Wait()
}

// copyHalf passes on one direction, and its end, while the other may go on.
func copyHalf(to, from net.Conn) {
	_, err := io.Copy(to, from)
	half, ok := to.(interface{ CloseWrite() error })
	if err != nil || !ok || half.CloseWrite() != nil {
		to.Close()
		from.Close()
	}
}
