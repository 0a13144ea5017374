package main

import (
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// attendedEnv is set for the process that does the work, below the one that attends it.
const attendedEnv = "BRANCHLINE_CHECK_ATTENDED"

// attendSelf is attend for this program as it was called.
func attendSelf() (status int, err error) {
	path, err := os.Executable() // by its name, and not /proc/self/exe: it is what ps shows
	if err != nil {
		return 2, err
	}
	return attend(path, os.Args, os.Environ())
}

// attend runs this program once more, as its child, and is for all that runs below what process 1 is for a system: it
// reaps orphans as they end (a test may wait for one to be gone), and ends those that are left in the end: a test that
// is interrupted leaves its API server, which is in a process group of its own, and its instances' cgroups. It returns the
// child's exit status.
func attend(path string, args, env []string) (status int, err error) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return 2, fmt.Errorf("become the parent of orphans: %w", err)
	}
	others := instanceCgroups(cgroupRoot)
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	runtime.LockOSThread() // Pdeathsig looks at the thread that started the child
	child, err := os.StartProcess(path, args, &os.ProcAttr{
		Env: append(env, attendedEnv+"=1"), Files: []*os.File{os.Stdin, os.Stdout, os.Stderr},
		Sys: &syscall.SysProcAttr{Pdeathsig: syscall.SIGTERM},
	})
	if err != nil {
		return 2, err
	}
	go func() {
		for s := range signals {
			_ = child.Signal(s) // it may have it already, from the terminal; the second does nothing more
		}
	}()
	status, err = reapUntil(child.Pid)
	left, endErr := endOrphans()
	if len(left) > 0 {
		fmt.Fprintln(os.Stderr, "check: ended what its programs left running:", strings.Join(left, ", "))
	}
	// By now nobody runs in what this run's instances have left.
	if n := removeIdle(slices.DeleteFunc(instanceCgroups(cgroupRoot), func(d string) bool { return slices.Contains(others, d) })); n > 0 {
		fmt.Fprintln(os.Stderr, "check: removed cgroups that its instances left:", n)
	}
	return status, errors.Join(err, endErr)
}

// reapUntil waits for whichever child ends, until it is this one.
func reapUntil(pid int) (status int, err error) {
	for {
		var s unix.WaitStatus
		ended, err := unix.Wait4(-1, &s, 0, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return 2, fmt.Errorf("wait for process %d: %w", pid, err)
		case ended == pid && s.Signaled():
			return 128 + int(s.Signal()), nil
		case ended == pid:
			return s.ExitStatus(), nil
		}
	}
}

// endOrphans kills this process's children, and theirs as they become its own, until there are none.
func endOrphans() (ended []string, err error) {
	for {
		children, err := childrenOf(os.Getpid())
		if err != nil {
			return ended, err
		}
		names := map[int]string{}
		for _, pid := range children {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			names[pid] = strings.TrimSpace(string(name))
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return ended, fmt.Errorf("end process %d (%s): %w", pid, names[pid], err)
			}
		}
		options := 0
		if len(children) == 0 {
			options = unix.WNOHANG // there is nobody to wait for, or nobody that was told to end
		}
		var s unix.WaitStatus
		pid, err := unix.Wait4(-1, &s, options, nil)
		switch {
		case errors.Is(err, unix.ECHILD):
			return ended, nil
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return ended, fmt.Errorf("wait for the end of what its programs left running: %w", err)
		case pid == 0:
			return ended, errors.New("its programs left something running that /proc doesn't name (a kernel without CONFIG_PROC_CHILDREN?)")
		case s.Signaled(): // or it had ended by itself
			ended = append(ended, names[pid])
		}
	}
}

func childrenOf(parent int) (pids []int, err error) {
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", parent))
	if err != nil {
		return nil, err
	}
	for _, t := range threads {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", parent, t.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				return nil, err
			}
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return slices.Compact(pids), nil
}
