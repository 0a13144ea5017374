package instance

import (
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

// spawner starts processes that the kernel kills when this process ends, however it ends. Pdeathsig is sent when the
// *thread* that forked ends, so all forking is done by one goroutine that owns a thread until close.
type spawner struct {
	work chan func()
	done chan struct{}
}

func newSpawner() *spawner {
	s := &spawner{work: make(chan func()), done: make(chan struct{})}
	go func() {
		// Never unlocked: the thread ends with the goroutine and is not given to others.
		runtime.LockOSThread()
		defer close(s.done)
		for f := range s.work {
			f()
		}
	}()
	return s
}

// child is a process of the spawner.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{} // closed when the process has been waited for
	err   error         // valid after ended
}

// start runs cmd with both outputs added to logFile.
func (s *spawner) start(cmd *exec.Cmd, logFile string) (*child, error) {
	log, err := os.OpenFile(logFile, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, fmt.Errorf("open log of %s: %w", cmd.Path, err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// Not in the terminal's foreground group: Ctrl-C is for the supervisor, which then ends us in order.
	cmd.SysProcAttr.Setsid = true
	errc := make(chan error, 1)
	s.work <- func() { errc <- cmd.Start() }
	if err := <-errc; err != nil {
		return nil, fmt.Errorf("start %s: %w", cmd.Path, err)
	}
	host.GiveWay(cmd.Process.Pid, 0) // a session of its own has a nice value of its own
	c := &child{cmd: cmd, ended: make(chan struct{})}
	go func() {
		c.err = cmd.Wait()
		close(c.ended)
	}()
	return c, nil
}

// kill ends the process and waits for its end.
func (c *child) kill() {
	if c == nil {
		return
	}
	c.cmd.Process.Kill() // an error means that it has ended
	<-c.ended
}

// close must only be called when every child has ended: it ends the thread that they are tied to.
func (s *spawner) close() {
	close(s.work)
	<-s.done
}
