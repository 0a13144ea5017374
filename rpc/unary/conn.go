package unary

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/branchline-cni/branchline/rpc/peercred"
)

// MaxSocketPath is what fits into sockaddr_un with its terminating zero byte (unix(7)).
const MaxSocketPath = 107

// Readiness says what a call does while no server is there.
type Readiness bool

const (
	// FailFast makes a call fail at once with Unavailable when nobody listens.
	FailFast Readiness = false
	// WaitForReady makes a call wait, within its deadline, for a server that is restarting.
	WaitForReady Readiness = true
)

// A restarting server is back within seconds, and nobody else should wait much longer than it takes.
const (
	firstPause = 50 * time.Millisecond
	maxPause   = time.Second
)

// Conn makes calls to the server of one socket. It connects when it must, and again after a connection has ended. It is
// for one goroutine at a time.
type Conn struct {
	socket string
	uid    uint32

	file *os.File // nil: not connected
	s    *session
	in   []byte // in[from:to] has been read and not looked at
	from int
	to   int
}

// New prepares calls to the server that listens on socket, an absolute path, with the user id uid. Nothing is connected
// before Connect or the first call.
func New(socket string, uid uint32) (*Conn, error) {
	if !filepath.IsAbs(socket) || len(socket) > MaxSocketPath {
		return nil, fmt.Errorf("socket %q: want an absolute path of at most %d bytes", socket, MaxSocketPath)
	}
	return &Conn{socket: socket, uid: uid}, nil
}

// Connect makes the connection ahead of the call, so that the server can do its part of the beginning while the caller
// does something else. It blocks for nobody. Its error need not be looked at: the call tries again.
func (c *Conn) Connect() error {
	if c.file != nil {
		return nil
	}
	if err := c.connect(); err != nil {
		return err
	}
	// The socket's buffer is empty, so this doesn't wait for the server either.
	if err := c.flush(); err != nil {
		c.Close()
		return fmt.Errorf("begin a connection on %s: %w", c.socket, err)
	}
	return nil
}

// Close closes the connection. A call makes a new one.
func (c *Conn) Close() {
	if c.file != nil {
		c.file.Close() // what it could say of, a lost write, the call has noticed by its answer
		c.file, c.s = nil, nil
	}
}

// connect makes the socket. With a socket of our own, rather than net's dialler, it is three system calls.
func (c *Conn) connect() error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fmt.Errorf("make a unix socket: %w", err)
	}
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: c.socket}); err != nil {
		unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", c.socket, err)
	}
	peer, err := peercred.OfFD(fd)
	if err == nil {
		err = peer.Check(c.uid)
	}
	if err != nil {
		unix.Close(fd)
		return fmt.Errorf("connect to %s: %w", c.socket, err)
	}
	c.file, c.s = os.NewFile(uintptr(fd), c.socket), newSession()
	c.from, c.to = 0, 0
	return nil
}

// failure is why one attempt has no reply.
type failure struct {
	*Error
	again bool // the server has not looked at the request
	away  bool // there is nobody to talk to
}

// Call calls method, "/package.Service/Method", with in, and fills out with the reply. Its error is an *Error. The
// deadline is the context's, and is told to the server. A call that does not end with the server's answer takes the
// connection along, by which the server knows that nobody waits any more.
func (c *Conn) Call(ctx context.Context, method string, in, out proto.Message, ready Readiness) error {
	fail := func(e *Error) error {
		e.Method, e.Socket = method, c.socket
		return e
	}
	if err := ctx.Err(); err != nil {
		return fail(ended(err, "not begun"))
	}
	body, err := encode(in)
	if err != nil {
		return fail(&Error{Code: Internal, Message: err.Error(), Cause: err})
	}
	pause := firstPause
	for attempt := 1; ; attempt++ {
		reply, f := c.try(ctx, method, body)
		if f == nil {
			if err := proto.Unmarshal(reply, out); err != nil {
				return fail(&Error{Code: Internal, Message: "decode the reply: " + err.Error(), Cause: err})
			}
			return nil
		}
		if err := over(ctx); err != nil && !f.Answered {
			return fail(ended(err, f.Message))
		}
		switch {
		case !f.again || errors.Is(f.Cause, peercred.ErrRefused):
			return fail(f.Error)
		case bool(ready), errors.Is(f.Cause, unix.EAGAIN): // its queue of connections is full: it is there
		case f.away || attempt > 1:
			return fail(f.Error)
		default:
			continue // what a leaving server has not looked at, its successor may: once
		}
		// So that the node's executables don't come all at once.
		wait := time.NewTimer(pause - time.Duration(rand.Int64N(int64(pause)/4)))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return fail(ended(ctx.Err(), f.Message))
		}
		pause = min(pause*8/5, maxPause)
	}
}

// Invoke is Call with a reply of its own.
func Invoke[M any, P interface {
	*M
	proto.Message
}](ctx context.Context, c *Conn, method string, in proto.Message, ready Readiness) (*M, error) {
	out := new(M)
	if err := c.Call(ctx, method, in, P(out), ready); err != nil {
		return nil, err
	}
	return out, nil
}

// over is the context's error, also when its timer is about to fire: the server has the same deadline, by the same clock.
func over(ctx context.Context) error {
	if deadline, ok := ctx.Deadline(); ok && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// ended is the error of a call whose context has ended while it was as what says.
func ended(err error, what string) *Error {
	code, text := Canceled, "canceled"
	if errors.Is(err, context.DeadlineExceeded) {
		code, text = DeadlineExceeded, "no answer within its deadline"
	}
	return &Error{Code: code, Message: text + ": " + what, Cause: err}
}

// try makes one attempt.
func (c *Conn) try(ctx context.Context, method string, body []byte) (reply []byte, f *failure) {
	if c.file != nil && !c.s.usable() {
		c.Close()
	}
	if c.file == nil {
		if err := c.connect(); err != nil {
			code := Unavailable
			if errors.Is(err, peercred.ErrRefused) {
				code = Unauthenticated
			}
			return nil, &failure{&Error{Code: code, Message: err.Error(), Cause: err}, true, true}
		}
	}
	var left time.Duration
	if deadline, ok := ctx.Deadline(); ok {
		left = max(time.Until(deadline), 1)
	}
	if c.s.maxStreams == 0 { // known only when this is not the first call
		c.Close()
		return nil, &failure{&Error{Code: Unavailable, Message: "the server takes no calls (SETTINGS_MAX_CONCURRENT_STREAMS is 0)"}, true, true}
	}
	call, err := c.s.begin(method, body, left)
	if err != nil {
		c.Close()
		return nil, &failure{Error: &Error{Code: Internal, Message: err.Error(), Cause: err}}
	}
	file := c.file
	stop := context.AfterFunc(ctx, func() { file.SetDeadline(time.Unix(1, 0)) })
	f = c.exchange(call)
	if !stop() || f != nil && !f.Answered || len(call.body) > 0 {
		c.Close()
	}
	if f != nil {
		return nil, f
	}
	return call.reply(), nil
}

// exchange writes and reads until the call is done.
func (c *Conn) exchange(call *call) *failure {
	sent := false // the whole request: with less of it no server can have acted on it
	var broke error
	for {
		if f := c.digest(call); f != nil {
			return f
		}
		if call.done {
			break
		}
		if broke == nil {
			// A server that has gone may have left a word.
			broke = c.flush()
			sent = sent || broke == nil && len(call.body) == 0
		}
		if err := c.read(); err != nil {
			if broke != nil {
				err = broke
			}
			// A server says its SETTINGS before anything else: who has said nothing has done nothing.
			return c.lost(err, !sent || !c.s.settled)
		}
	}
	if call.err != nil {
		return &failure{Error: call.err, again: call.refused}
	}
	return nil
}

// digest acts on the whole frames that have been read, up to the call's end.
func (c *Conn) digest(call *call) *failure {
	for !call.done {
		f, rest, ok, err := cutFrame(c.in[c.from:c.to])
		if err == nil && ok {
			err = c.s.take(f)
		}
		var b *brokenError
		if errors.As(err, &b) {
			c.file.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
			c.file.Write(farewell(b)) // a courtesy
			return &failure{Error: &Error{Code: Internal, Message: err.Error(), Cause: err}}
		}
		if !ok {
			break
		}
		c.from = c.to - len(rest)
	}
	return nil
}

func (c *Conn) lost(err error, again bool) *failure {
	text := "the connection is lost before the answer: "
	var at *os.PathError // it names the socket once more
	switch {
	case errors.Is(err, io.EOF):
		text = "the server has closed the connection before its answer"
	case errors.As(err, &at):
		text += at.Op + ": " + at.Err.Error()
	default:
		text += err.Error()
	}
	return &failure{&Error{Code: Unavailable, Message: text, Cause: err}, again, false}
}

func (c *Conn) flush() error {
	if len(c.s.out) == 0 {
		return nil
	}
	_, err := c.file.Write(c.s.out)
	c.s.out = c.s.out[:0]
	return err
}

// read reads what is there, and waits for it when nothing is. The buffer holds any frame that the server may send.
func (c *Conn) read() error {
	if c.in == nil {
		c.in = make([]byte, frameHeader+minMaxFrame)
	}
	if c.from > 0 {
		c.from, c.to = 0, copy(c.in, c.in[c.from:c.to])
	}
	n, err := c.file.Read(c.in[c.to:])
	c.to += n
	if n > 0 {
		return nil
	}
	return err
}
