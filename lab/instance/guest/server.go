package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
)

// Server answers the supervisor's requests.
type Server struct {
	conn   *Conn[Request, Reply]
	reaper *reaper
	// powerOff ends the instance; it doesn't return when it works.
	powerOff func() error

	mu    sync.Mutex
	procs map[uint64]int // request -> pid
}

// NewServer serves rw. Servers must be the process's only waiters for children.
func NewServer(rw io.ReadWriter, powerOff func() error) *Server {
	return &Server{conn: NewConn[Request, Reply](rw), reaper: children(), powerOff: powerOff, procs: map[uint64]int{}}
}

// Serve announces the instance as booted and answers requests, each on its own, until the supervisor is gone.
func (s *Server) Serve() error {
	if err := s.conn.Send(Reply{Kind: KindReady}); err != nil {
		return err
	}
	for {
		req, err := s.conn.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		go s.handle(req)
	}
}

func (s *Server) handle(req Request) {
	var err error
	switch req.Op {
	case OpExec:
		s.exec(req)
		return
	case OpStart:
		s.start(req)
		return
	case OpLinkUp:
		s.linkUp(req)
		return
	case OpSignal:
		err = s.kill(req.Target, syscall.Signal(req.Signal), false)
	case OpCancel:
		err = s.kill(req.Target, syscall.SIGKILL, true)
	case OpLinkGone:
		err = linkGone(req.Link)
	case OpConfigure:
		err = configure(req.Primary)
	case OpModules:
		err = s.modprobe(req.Modules)
	case OpPowerOff:
		err = s.powerOff()
	default:
		err = fmt.Errorf("the agent knows no request %q", req.Op)
	}
	if err != nil {
		s.fail(req.ID, err)
		return
	}
	s.reply(Reply{ID: req.ID, Kind: KindDone})
}

// reply drops an answer that can't be sent: the supervisor is gone then, and Serve sees it too.
func (s *Server) reply(r Reply) { s.conn.Send(r) }

func (s *Server) fail(id uint64, err error) {
	s.reply(Reply{ID: id, Kind: KindError, Code: codeOf(err), Error: err.Error()})
}

func (s *Server) track(id uint64, pid int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.procs[id] = pid
}

func (s *Server) untrack(id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.procs, id)
}

func (s *Server) kill(target uint64, sig syscall.Signal, group bool) error {
	s.mu.Lock()
	pid, ok := s.procs[target]
	s.mu.Unlock()
	if !ok {
		return fmt.Errorf("signal process of request %d: %w", target, os.ErrProcessDone)
	}
	if err := s.reaper.signal(pid, sig, group); err != nil {
		return fmt.Errorf("send %v to process %d: %w", sig, pid, err)
	}
	return nil
}

// modprobe loads modules by the instance's own modprobe, which knows their dependencies.
func (s *Server) modprobe(names []string) error {
	for _, name := range names {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		_, ended, err := s.run(&Process{Argv: []string{"modprobe", name}}, w, w)
		w.Close()
		if err != nil {
			r.Close()
			return fmt.Errorf("load kernel module %s: %w", name, err)
		}
		out, _ := io.ReadAll(io.LimitReader(r, 4096))
		r.Close()
		if ws := <-ended; ws.ExitStatus() != 0 {
			return fmt.Errorf("load kernel module %s: modprobe: %s", name, out)
		}
	}
	return nil
}
