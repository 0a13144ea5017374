package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	outputChunk = 32 << 10
	// pipeGrace is how long a finished command's output is still read while something that it left behind holds the pipe.
	pipeGrace = 500 * time.Millisecond
)

// reaper waits for every child, its own and the orphans that PID 1 inherits. Only it may call wait4, else it would take
// the status that os/exec waits for; so processes are started through it.
type reaper struct {
	mu      sync.Mutex
	waiting map[int]chan syscall.WaitStatus
}

// children is this process's reaper: of two, each would take the statuses that the other one waits for.
var children = sync.OnceValue(newReaper)

func newReaper() *reaper {
	r := &reaper{waiting: map[int]chan syscall.WaitStatus{}}
	sig := make(chan os.Signal, 1)
	signal.Notify(sig, syscall.SIGCHLD)
	go func() {
		for range sig {
			r.reap()
		}
	}()
	return r
}

func (r *reaper) reap() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws syscall.WaitStatus
		pid, err := syscall.Wait4(-1, &ws, syscall.WNOHANG, nil)
		if errors.Is(err, syscall.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if c := r.waiting[pid]; c != nil {
			delete(r.waiting, pid)
			c <- ws
		}
	}
}

// start runs a process. The lock is held until its channel is known, so that it can't be reaped before.
func (r *reaper) start(path string, argv []string, attr *os.ProcAttr) (int, <-chan syscall.WaitStatus, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	p, err := os.StartProcess(path, argv, attr)
	if err != nil {
		return 0, nil, err
	}
	c := make(chan syscall.WaitStatus, 1)
	r.waiting[p.Pid] = c
	pid := p.Pid
	return pid, c, p.Release()
}

// signal sends sig to a child that has not been reaped (a pid that has been could by now be another process).
func (r *reaper) signal(pid int, sig syscall.Signal, group bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.waiting[pid] == nil {
		return os.ErrProcessDone
	}
	if group {
		return syscall.Kill(-pid, sig)
	}
	return syscall.Kill(pid, sig)
}

// environment is the agent's own, in which extra replaces variables: most programs take the first of two.
func environment(extra []string) []string {
	var env []string
	for _, v := range []string{"PATH=" + defaultPath, "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"} {
		name, _, _ := strings.Cut(v, "=")
		if !slices.ContainsFunc(extra, func(e string) bool { return strings.HasPrefix(e, name+"=") }) {
			env = append(env, v)
		}
	}
	return append(env, extra...)
}

// lookup finds the executable as execvp does, by the PATH that the process itself will have.
func lookup(name string, env []string) (string, error) {
	if name == "" {
		return "", fmt.Errorf("empty command name: %w", os.ErrNotExist)
	}
	if strings.Contains(name, "/") {
		return name, nil
	}
	path := defaultPath
	for _, e := range env {
		if v, ok := strings.CutPrefix(e, "PATH="); ok {
			path = v
		}
	}
	for _, dir := range filepath.SplitList(path) {
		f := filepath.Join(dir, name)
		if st, err := os.Stat(f); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return f, nil
		}
	}
	return "", fmt.Errorf("%q is in no folder of PATH=%s: %w", name, path, os.ErrNotExist)
}

// run starts p with the given outputs and returns its pid and the channel of its end.
func (s *Server) run(p *Process, stdout, stderr *os.File) (int, <-chan syscall.WaitStatus, error) {
	if p == nil || len(p.Argv) == 0 {
		return 0, nil, errors.New("no command given")
	}
	env := environment(p.Env)
	exe, err := lookup(p.Argv[0], env)
	if err != nil {
		return 0, nil, err
	}
	stdin, err := stdinOf(p.Stdin)
	if err != nil {
		return 0, nil, err
	}
	defer stdin.Close()
	// A session of its own: the whole group can be killed, and no terminal's signals reach it.
	attr := &os.ProcAttr{Dir: p.Dir, Env: env, Files: []*os.File{stdin, stdout, stderr}, Sys: &syscall.SysProcAttr{Setsid: true}}
	return s.reaper.start(exe, p.Argv, attr)
}

func stdinOf(data []byte) (*os.File, error) {
	if len(data) == 0 {
		return os.Open(os.DevNull)
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	go func() {
		defer w.Close()
		w.Write(data) // a process that doesn't read its input is no error of ours
	}()
	return r, nil
}

func (s *Server) exec(req Request) {
	outR, outW, err := os.Pipe()
	if err != nil {
		s.fail(req.ID, err)
		return
	}
	defer outR.Close()
	errR, errW, err := os.Pipe()
	if err != nil {
		outW.Close()
		s.fail(req.ID, err)
		return
	}
	defer errR.Close()
	pid, ended, err := s.run(req.Process, outW, errW)
	outW.Close()
	errW.Close()
	if err != nil {
		s.fail(req.ID, err)
		return
	}
	s.track(req.ID, pid)
	defer s.untrack(req.ID)
	var copies sync.WaitGroup
	copies.Go(func() { s.forward(req.ID, 1, outR) })
	copies.Go(func() { s.forward(req.ID, 2, errR) })
	ws := <-ended
	copied := make(chan struct{})
	go func() { copies.Wait(); close(copied) }()
	grace := time.NewTimer(pipeGrace)
	defer grace.Stop()
	select {
	case <-copied:
	case <-grace.C:
		outR.SetReadDeadline(time.Now())
		errR.SetReadDeadline(time.Now())
		<-copied
	}
	s.reply(exited(req.ID, ws))
}

func (s *Server) forward(id uint64, stream int, r io.Reader) {
	buf := make([]byte, outputChunk)
	for {
		n, err := r.Read(buf)
		if n > 0 {
			s.reply(Reply{ID: id, Kind: KindOutput, Stream: stream, Data: slices.Clone(buf[:n])})
		}
		if err != nil {
			return
		}
	}
}

func (s *Server) start(req Request) {
	if req.Process == nil || req.Process.Log == "" {
		s.fail(req.ID, errors.New("start: no log file given"))
		return
	}
	log, err := os.OpenFile(req.Process.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		s.fail(req.ID, fmt.Errorf("open log of %v: %w", req.Process.Argv, err))
		return
	}
	pid, ended, err := s.run(req.Process, log, log)
	log.Close()
	if err != nil {
		s.fail(req.ID, err)
		return
	}
	s.track(req.ID, pid)
	defer s.untrack(req.ID)
	s.reply(Reply{ID: req.ID, Kind: KindStarted, PID: pid})
	s.reply(exited(req.ID, <-ended))
}

func exited(id uint64, ws syscall.WaitStatus) Reply {
	r := Reply{ID: id, Kind: KindExited, ExitCode: ws.ExitStatus()}
	if ws.Signaled() {
		r.Signal = int(ws.Signal())
		r.ExitCode = 128 + r.Signal
	}
	return r
}

func codeOf(err error) Code {
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, exec.ErrNotFound), errors.Is(err, os.ErrProcessDone):
		return CodeNotFound
	case errors.Is(err, os.ErrDeadlineExceeded):
		return CodeTimeout
	}
	return CodeOther
}
