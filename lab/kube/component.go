package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// ErrEnded is returned where a program of the cluster ended that should have kept running.
var ErrEnded = errors.New("the program ended")

// component is one long-running program of the cluster, which can be killed and started again.
type component struct {
	name    string
	machine Machine
	command instance.Command
	log     *slog.Logger

	mu      sync.Mutex
	current *running // nil when it never ran
}

// running is one life of a component.
type running struct {
	process instance.Process
	ended   chan struct{} // closed when the process has ended
	exit    string        // valid when ended is closed
}

// start starts the program, unless it runs.
func (c *component) start(ctx context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.current != nil && !c.current.hasEnded() {
		return nil
	}
	p, err := c.machine.Start(ctx, c.name, c.command)
	if err != nil {
		return fmt.Errorf("start %s: %w", c.name, err)
	}
	r := &running{process: p, ended: make(chan struct{})}
	c.current = r
	go func() {
		// Without a limit: it ends with the program, or with the instance.
		code, err := p.Wait(context.Background())
		r.exit = fmt.Sprintf("status %d", code)
		if err != nil {
			r.exit = err.Error()
		}
		c.log.Info("program ended", "name", c.name, "pid", p.PID(), "how", r.exit)
		close(r.ended)
	}()
	c.log.Info("program started", "name", c.name, "pid", p.PID())
	return nil
}

// stop sends the signal and waits for the end.
func (c *component) stop(ctx context.Context, sig syscall.Signal) error {
	r := c.life()
	if r == nil || r.hasEnded() {
		return nil
	}
	if err := r.process.Signal(ctx, sig); err != nil && !r.hasEnded() {
		return fmt.Errorf("send %s to %s: %w", sig, c.name, err)
	}
	select {
	case <-r.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for %s to end after %s: %w", c.name, sig, context.Cause(ctx))
	}
}

func (c *component) life() *running {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.current
}

func (r *running) hasEnded() bool {
	select {
	case <-r.ended:
		return true
	default:
		return false
	}
}

// await calls check every interval until it succeeds. It gives up when ctx ends, or at once when the program does.
func (c *component) await(ctx context.Context, interval time.Duration, check func(context.Context) error) error {
	r := c.life()
	if r == nil {
		return fmt.Errorf("wait for %s: it was never started", c.name)
	}
	err := poll(ctx, interval, r.ended, check)
	switch {
	case err == nil:
		return nil
	case r.hasEnded():
		return fmt.Errorf("wait for %s to be ready: %w (%s); its log says why", c.name, ErrEnded, r.exit)
	default:
		return fmt.Errorf("wait for %s to be ready: %w", c.name, err)
	}
}

// poll calls check at once and then every interval until it succeeds, ctx ends or stop is closed. The error names
// what check said last.
func poll(ctx context.Context, interval time.Duration, stop <-chan struct{}, check func(context.Context) error) error {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		last := check(ctx)
		if last == nil {
			return nil
		}
		select {
		case <-stop:
			return last
		case <-ctx.Done():
			return fmt.Errorf("%w; the last answer was: %w", context.Cause(ctx), last)
		case <-ticker.C:
		}
	}
}
