package main

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// adoptOrphans makes this process the parent of what its programs leave running when they end: a test that is interrupted
// leaves its API server, which is in a process group of its own.
func adoptOrphans() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become the parent of orphans: %w", err)
	}
	return nil
}

// endOrphans kills what is left of this process's children, and of theirs. It is called when nothing is to run any more.
func endOrphans() (ended []string, err error) {
	for {
		children, err := childrenOf(os.Getpid())
		if err != nil || len(children) == 0 {
			return ended, err
		}
		for _, pid := range children {
			name, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
			var status unix.WaitStatus
			if done, err := unix.Wait4(pid, &status, unix.WNOHANG, nil); err != nil || done == pid {
				continue // it had ended by itself
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return ended, fmt.Errorf("end process %d (%s): %w", pid, strings.TrimSpace(string(name)), err)
			}
			if _, err := unix.Wait4(pid, &status, 0, nil); err != nil && !errors.Is(err, unix.ECHILD) {
				return ended, fmt.Errorf("wait for the end of process %d: %w", pid, err)
			}
			ended = append(ended, strings.TrimSpace(string(name)))
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
