package artifacts

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"
)

// command is one run of a program to its end.
type command struct {
	dir  string
	env  []string // added to ours
	argv []string
}

// run returns what the program wrote to stdout. Its whole process group is
// stopped when ctx ends. An error carries the end of what it wrote to stderr.
func (c command) run(ctx context.Context) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.argv[0], c.argv[1:]...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), c.env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		return nil, fmt.Errorf("run %s: %w%s", strings.Join(c.argv, " "), err, tail(stderr.String(), 40))
	}
	return stdout.Bytes(), nil
}

// tail is the last n lines of a program's messages, ready to stand behind an
// error, or nothing.
func tail(s string, n int) string {
	s = strings.TrimSpace(s)
	if s == "" {
		return ""
	}
	lines := strings.Split(s, "\n")
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	return ":\n\t" + strings.Join(lines, "\n\t")
}
