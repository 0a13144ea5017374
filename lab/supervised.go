package lab

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// restartAfter is how long a supervised program stays down, as with a kubelet's first restarts.
const restartAfter = time.Second

// supervised is a program on an instance that is started again whenever it ends, as a kubelet or systemd does.
type supervised struct {
	name    string
	host    instance.Instance
	command instance.Command
	log     *slog.Logger

	cancel context.CancelFunc
	done   chan struct{}

	mu      sync.Mutex
	current instance.Process
}

// supervise starts the program; it runs until stop.
func supervise(ctx context.Context, host instance.Instance, name string, c instance.Command, log *slog.Logger) (*supervised, error) {
	s := &supervised{name: name, host: host, command: c, log: log, done: make(chan struct{})}
	p, err := host.Start(ctx, name, c)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	s.current = p
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	go s.keep(run)
	return s, nil
}

func (s *supervised) keep(ctx context.Context) {
	defer close(s.done)
	for {
		code, err := s.process().Wait(ctx)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("program ended and is started again", "program", s.name, "exitCode", code, "error", err)
		for {
			select {
			case <-ctx.Done():
				return
			case <-s.host.Done():
				return
			case <-time.After(restartAfter):
			}
			p, err := s.host.Start(ctx, s.name, s.command)
			if err == nil {
				s.mu.Lock()
				s.current = p
				s.mu.Unlock()
				break
			}
			s.log.Warn("program did not start", "program", s.name, "error", err)
		}
	}
}

func (s *supervised) process() instance.Process {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.current
}

// kill ends the program with SIGKILL; it is then started again.
func (s *supervised) kill(ctx context.Context) (pid int, err error) {
	p := s.process()
	return p.PID(), p.Signal(ctx, syscall.SIGKILL)
}

// stop ends the program for good.
func (s *supervised) stop() {
	s.cancel()
	<-s.done
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := s.process().Signal(ctx, syscall.SIGKILL); err != nil {
		s.log.Debug("end a program", "program", s.name, "error", err)
	}
}
