package vpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// maxUnixPath is what fits into a sockaddr_un beside the closing NUL.
const maxUnixPath = 107

// DgramLink returns a link over two unix datagram sockets, one datagram per frame: QEMU's
// "netdev dgram,local.type=unix,local.path=<remote>,remote.type=unix,remote.path=<local>" is the other side. The socket
// at local is made here and removed by Close. The one at remote need not exist yet; until it does, frames to it are lost
// (WriteFrame fails), like on a cable with nothing at its end.
func DgramLink(local, remote string) (Link, error) {
	for _, p := range []string{local, remote} {
		if len(p) > maxUnixPath {
			return nil, fmt.Errorf("unix socket path %q has %d bytes, at most %d work: use a shorter state directory", p, len(p), maxUnixPath)
		}
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: local, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("listen for frames on unix datagram socket %s: %w", local, err)
	}
	return &dgramLink{conn: conn, local: local, remote: remote}, nil
}

type dgramLink struct {
	conn          *net.UnixConn
	local, remote string

	mu        sync.Mutex // guards connected
	connected bool
	closeOnce sync.Once
	closeErr  error
}

func (l *dgramLink) ReadFrame(buf []byte) (int, error) {
	for {
		n, err := l.conn.Read(buf)
		// These say once that the other side went away. It may come back.
		if errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		return n, err
	}
}

func (l *dgramLink) WriteFrame(frame []byte) error {
	if err := l.connect(); err != nil {
		return err
	}
	_, err := l.conn.Write(frame)
	if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNRESET) {
		// The other side went away and perhaps came back with a new socket.
		l.mu.Lock()
		l.connected = false
		l.mu.Unlock()
	}
	return err
}

// connect ties our socket to the other one. Only a connected datagram socket can wait (in Go's poller) for room in its
// peer's queue; an unconnected one would have to spin.
func (l *dgramLink) connect() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.connected {
		return nil
	}
	raw, err := l.conn.SyscallConn()
	if err != nil {
		return err
	}
	var cerr error
	if err := raw.Control(func(fd uintptr) {
		cerr = unix.Connect(int(fd), &unix.SockaddrUnix{Name: l.remote})
	}); err != nil {
		return err
	}
	if cerr != nil {
		return fmt.Errorf("connect to unix datagram socket %s: %w", l.remote, cerr)
	}
	l.connected = true
	return nil
}

func (l *dgramLink) Close() error {
	l.closeOnce.Do(func() {
		l.closeErr = l.conn.Close()
		if err := os.Remove(l.local); err != nil && !errors.Is(err, os.ErrNotExist) {
			l.closeErr = errors.Join(l.closeErr, err)
		}
	})
	return l.closeErr
}
