package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/branchline-cni/branchline/lab"
)

// defaultDir is where a lab that is left running keeps its files.
const defaultDir = "/var/tmp/branchline-lab"

// Files in a running lab's folder.
const (
	pidFile   = "vpclab.pid"   // process id and start time of the process that holds the lab
	readyFile = "vpclab.ready" // usage, written when the lab is up
	errorFile = "vpclab.error" // why it is not
	logFile   = "vpclab.log"
	outFile   = "vpclab.out" // progress
)

func upCommand() *cobra.Command {
	var o settings
	c := &cobra.Command{
		Use:   "up",
		Short: "start a lab, leave it running and print how to use it",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := lab.ParseControllerMode(o.controller); err != nil {
				return err
			}
			if err := prepareHost(cmd.Context()); err != nil {
				return err
			}
			return up(cmd.Context(), o)
		},
	}
	o.flags(c)
	return c
}

// settings of a lab that is left running, for up and the process that it starts.
type settings struct {
	dir, controller string
	ipv6            bool
}

func (o *settings) flags(c *cobra.Command) {
	c.Flags().StringVar(&o.dir, "dir", defaultDir, "the lab's folder")
	c.Flags().StringVar(&o.controller, "controller", string(lab.Hosted),
		"how vpc-controller runs: hosted, a process beside the API server, or deployment, config/vpc-controller on the nodes")
	c.Flags().BoolVar(&o.ipv6, "ipv6", false, "an IPv6 cluster: nodes, pods and Services have IPv6 addresses")
}

// up starts the process that holds the lab and waits until it says that the lab is up.
func up(ctx context.Context, o settings) error {
	dir := o.dir
	if pid, running := holder(dir); running {
		return fmt.Errorf("a lab runs already in %s (process %d): use it, or take it down with: go run ./cmd/vpclab down --dir %s", dir, pid, dir)
	}
	if err := emptied(dir); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	out, err := os.Create(filepath.Join(dir, outFile))
	if err != nil {
		return fmt.Errorf("make the lab's output file: %w", err)
	}
	defer out.Close()
	c := exec.Command(self, "serve", "--dir", dir, "--controller", o.controller, fmt.Sprintf("--ipv6=%t", o.ipv6))
	c.Stdout, c.Stderr = out, out
	// A session of its own: it outlives this terminal.
	c.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.Start(); err != nil {
		return fmt.Errorf("start the lab's process: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	shown := 0
	show := func() {
		b, err := os.ReadFile(out.Name())
		if err == nil && len(b) > shown {
			os.Stdout.Write(b[shown:])
			shown = len(b)
		}
	}
	tick := time.NewTicker(300 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			_ = c.Process.Signal(syscall.SIGTERM) // it takes down what it has made
			<-ended
			return context.Cause(ctx)
		case <-ended:
			show()
			why, err := os.ReadFile(filepath.Join(dir, errorFile))
			if err != nil {
				return fmt.Errorf("the lab's process ended; its log is %s", filepath.Join(dir, logFile))
			}
			return errors.New(string(why))
		case <-tick.C:
			show()
			if usage, err := os.ReadFile(filepath.Join(dir, readyFile)); err == nil {
				fmt.Print("\n", string(usage))
				return c.Process.Release()
			}
		}
	}
}

// emptied makes the lab's folder. What an earlier lab has left in it goes, what anybody else has there does not.
func emptied(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("look into the lab's folder: %w", err)
	}
	ours := func(e os.DirEntry) bool { return e.Name() == pidFile || e.Name() == outFile }
	if len(entries) > 0 && !slices.ContainsFunc(entries, ours) {
		return fmt.Errorf("%s is not empty and no lab has made it (%s is there): name another folder with --dir, or empty it yourself", dir, entries[0].Name())
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove what an earlier lab left in %s: %w", dir, err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the lab's folder: %w", err)
	}
	return nil
}

func serveCommand() *cobra.Command {
	var o settings
	c := &cobra.Command{
		Use:    "serve",
		Short:  "hold a lab until a signal comes (what up starts)",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(cmd *cobra.Command, _ []string) error { return serve(cmd.Context(), o) },
	}
	o.flags(c)
	return c
}

func serve(ctx context.Context, o settings) (err error) {
	dir := o.dir
	defer func() {
		if err != nil {
			_ = os.WriteFile(filepath.Join(dir, errorFile), []byte(err.Error()), 0o644) // also returned
		}
	}()
	controller, err := lab.ParseControllerMode(o.controller)
	if err != nil {
		return err
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, pidFile), fmt.Appendf(nil, "%d %s\n", os.Getpid(), start), 0o644); err != nil {
		return fmt.Errorf("write the lab's process id: %w", err)
	}
	log, err := os.Create(filepath.Join(dir, logFile))
	if err != nil {
		return fmt.Errorf("make the lab's log: %w", err)
	}
	defer log.Close()
	l, err := lab.Up(ctx, lab.Options{
		Dir: dir, Progress: os.Stdout, Controller: controller, IPv6: o.ipv6,
		Log: slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})),
	})
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, readyFile+".tmp")
	if err = os.WriteFile(tmp, []byte(l.Usage()), 0o644); err == nil {
		err = os.Rename(tmp, filepath.Join(dir, readyFile))
	}
	if err == nil {
		<-ctx.Done()
	}
	dctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return errors.Join(err, l.Down(dctx))
}

func downCommand() *cobra.Command {
	var dir string
	c := &cobra.Command{
		Use:   "down",
		Short: "take a running lab down and remove its files",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return down(cmd.Context(), dir) },
	}
	c.Flags().StringVar(&dir, "dir", defaultDir, "the lab's folder")
	return c
}

func down(ctx context.Context, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, pidFile)); err != nil {
		return fmt.Errorf("no lab in %s", dir)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 90*time.Second, errors.New("it took longer than 90 s"))
	defer cancel()
	if pid, running := holder(dir); running {
		if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
			return fmt.Errorf("end the lab's process %d: %w", pid, err)
		}
		for {
			if _, running := holder(dir); !running {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("wait for the end of the lab's process %d: %w; its log is %s", pid, context.Cause(ctx), filepath.Join(dir, logFile))
			case <-time.After(200 * time.Millisecond):
			}
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the lab's folder: %w", err)
	}
	fmt.Println("The lab is down; nothing of it is left.")
	return nil
}

// holder is the process that holds the lab in dir, and whether it runs. The start time keeps a reused process id apart.
func holder(dir string) (pid int, running bool) {
	b, err := os.ReadFile(filepath.Join(dir, pidFile))
	if err != nil {
		return 0, false
	}
	f := strings.Fields(string(b))
	if len(f) != 2 {
		return 0, false
	}
	pid, err = strconv.Atoi(f[0])
	if err != nil || pid <= 1 {
		return 0, false
	}
	now, err := startTime(pid)
	return pid, err == nil && now == f[1]
}

// startTime is a process's start in clock ticks since boot: field 22 of /proc/PID/stat (proc(5)).
func startTime(pid int) (string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("look up process %d: %w", pid, err)
	}
	// The second field is the name in parentheses and may hold anything.
	_, rest, ok := strings.Cut(string(b), ") ")
	f := strings.Fields(rest)
	if !ok || len(f) < 20 {
		return "", fmt.Errorf("look up process %d: unexpected /proc/%d/stat", pid, pid)
	}
	if f[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return f[19], nil
}
