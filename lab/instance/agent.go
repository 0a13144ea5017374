package instance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"regexp"
	"sync"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/instance/guest"
)

const (
	defaultMaxOutput = 8 << 20
	// cancelGrace is how long a killed command's end is waited for.
	cancelGrace = 5 * time.Second
)

// agent is the supervisor's side of the guest agent's protocol.
type agent struct {
	c     io.ReadWriteCloser
	conn  *guest.Conn[guest.Reply, guest.Request]
	state string // StateDir
	ready chan struct{}
	gone  chan struct{} // closed when the connection has ended, err is valid then
	err   error

	mu    sync.Mutex
	next  uint64
	calls map[uint64]func(guest.Reply) // called by the reading goroutine, in order
}

func newAgent(c io.ReadWriteCloser, stateDir string) *agent {
	a := &agent{
		c: c, conn: guest.NewConn[guest.Reply, guest.Request](c), state: stateDir,
		ready: make(chan struct{}), gone: make(chan struct{}), calls: map[uint64]func(guest.Reply){},
	}
	go a.read()
	return a
}

func (a *agent) read() {
	var once sync.Once
	for {
		r, err := a.conn.Receive()
		if err != nil {
			a.err = errors.Join(ErrClosed, err)
			break
		}
		if r.ID == 0 {
			if r.Kind == guest.KindReady {
				once.Do(func() { close(a.ready) })
				continue
			}
			a.err = fmt.Errorf("guest agent: %s", r.Error)
			break
		}
		a.mu.Lock()
		f := a.calls[r.ID]
		if r.Kind == guest.KindExited || r.Kind == guest.KindDone || r.Kind == guest.KindError || r.Kind == guest.KindLink {
			delete(a.calls, r.ID)
		}
		a.mu.Unlock()
		if f != nil {
			f(r)
		}
	}
	close(a.gone)
}

// send registers f for the replies to r and sends it.
func (a *agent) send(r guest.Request, f func(guest.Reply)) (uint64, error) {
	a.mu.Lock()
	a.next++
	r.ID = a.next
	a.calls[r.ID] = f
	a.mu.Unlock()
	if err := a.conn.Send(r); err != nil {
		a.forget(r.ID)
		return 0, errors.Join(ErrClosed, err)
	}
	return r.ID, nil
}

func (a *agent) forget(id uint64) {
	a.mu.Lock()
	delete(a.calls, id)
	a.mu.Unlock()
}

// call sends a request that has one reply.
func (a *agent) call(ctx context.Context, r guest.Request) (guest.Reply, error) {
	done := make(chan guest.Reply, 1)
	id, err := a.send(r, func(r guest.Reply) { done <- r })
	if err != nil {
		return guest.Reply{}, err
	}
	select {
	case reply := <-done:
		return reply, replyError(reply)
	case <-a.gone:
		return guest.Reply{}, a.err
	case <-ctx.Done():
		a.forget(id)
		return guest.Reply{}, ctx.Err()
	}
}

func replyError(r guest.Reply) error {
	if r.Kind != guest.KindError {
		return nil
	}
	switch r.Code {
	case guest.CodeNotFound:
		return fmt.Errorf("%w: %s", ErrNotFound, r.Error)
	case guest.CodeTimeout:
		return fmt.Errorf("%w: %s", context.DeadlineExceeded, r.Error)
	}
	return errors.New(r.Error)
}

func (c Command) process() *guest.Process {
	return &guest.Process{Argv: c.Argv, Env: c.Env, Dir: c.Dir, Stdin: c.Stdin}
}

// output collects one stream of a command, up to a limit, or passes it on.
type output struct {
	to        io.Writer
	kept      []byte
	limit     int
	truncated bool
	err       error
}

func (o *output) add(b []byte) {
	if o.to != nil {
		if o.err == nil {
			_, o.err = o.to.Write(b)
		}
		return
	}
	if room := o.limit - len(o.kept); len(b) > room {
		b, o.truncated = b[:room], true
	}
	o.kept = append(o.kept, b...)
}

func (a *agent) exec(ctx context.Context, c Command) (Result, error) {
	limit := c.MaxOutput
	if limit == 0 {
		limit = defaultMaxOutput
	}
	// Written by the reading goroutine only, and read here only after the last reply.
	stdout, stderr := output{to: c.Stdout, limit: limit}, output{to: c.Stderr, limit: limit}
	done := make(chan guest.Reply, 1)
	id, err := a.send(guest.Request{Op: guest.OpExec, Process: c.process()}, func(r guest.Reply) {
		switch {
		case r.Kind != guest.KindOutput:
			done <- r
		case r.Stream == 2:
			stderr.add(r.Data)
		default:
			stdout.add(r.Data)
		}
	})
	if err != nil {
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, err)
	}
	var last guest.Reply
	select {
	case last = <-done:
	case <-a.gone:
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, a.err)
	case <-ctx.Done():
		a.cancel(id, done)
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, context.Cause(ctx))
	}
	if err := replyError(last); err != nil {
		return Result{}, fmt.Errorf("run %q: %w", c.Argv, err)
	}
	res := Result{Stdout: stdout.kept, Stderr: stderr.kept, ExitCode: last.ExitCode}
	if err := errors.Join(stdout.err, stderr.err); err != nil {
		return res, fmt.Errorf("pass on the output of %q: %w", c.Argv, err)
	}
	if stdout.truncated || stderr.truncated {
		return res, fmt.Errorf("run %q: more than %d bytes: %w", c.Argv, limit, ErrOutputTruncated)
	}
	return res, nil
}

// cancel kills a command and waits for its end, so that the caller may rely on it being over.
func (a *agent) cancel(id uint64, done <-chan guest.Reply) {
	defer a.forget(id)
	if _, err := a.send(guest.Request{Op: guest.OpCancel, Target: id}, nil); err != nil {
		return
	}
	t := time.NewTimer(cancelGrace)
	defer t.Stop()
	select {
	case <-done:
	case <-a.gone:
	case <-t.C:
	}
}

// process is a started process.
type process struct {
	a    *agent
	id   uint64
	pid  int
	name string
	done chan struct{} // closed when it has ended; code is valid then
	code int
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9._-]*$`)

func (a *agent) start(ctx context.Context, name, log string, c Command) (Process, error) {
	if !validName.MatchString(name) {
		return nil, fmt.Errorf("start process: name %q does not make a file name", name)
	}
	gp := c.process()
	gp.Log = log
	p := &process{a: a, name: name, done: make(chan struct{})}
	started := make(chan guest.Reply, 1)
	id, err := a.send(guest.Request{Op: guest.OpStart, Process: gp}, func(r guest.Reply) {
		if r.Kind == guest.KindExited {
			p.code = r.ExitCode
			close(p.done)
			return
		}
		started <- r
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	select {
	case r := <-started:
		if err := replyError(r); err != nil {
			return nil, fmt.Errorf("start %s: %w", name, err)
		}
		p.id, p.pid = id, r.PID
		return p, nil
	case <-a.gone:
		return nil, fmt.Errorf("start %s: %w", name, a.err)
	case <-ctx.Done():
		a.cancel(id, nil)
		return nil, fmt.Errorf("start %s: %w", name, ctx.Err())
	}
}

func (p *process) PID() int { return p.pid }

func (p *process) Signal(ctx context.Context, s syscall.Signal) error {
	if _, err := p.a.call(ctx, guest.Request{Op: guest.OpSignal, Target: p.id, Signal: int(s)}); err != nil {
		return fmt.Errorf("signal %s: %w", p.name, err)
	}
	return nil
}

func (p *process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.done:
		return p.code, nil
	case <-p.a.gone:
		// Both may have happened, the process's end first.
		select {
		case <-p.done:
			return p.code, nil
		default:
		}
		return 0, fmt.Errorf("wait for %s: %w", p.name, p.a.err)
	case <-ctx.Done():
		return 0, fmt.Errorf("wait for %s: %w", p.name, ctx.Err())
	}
}
