package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

// part is one line of the summary.
type part struct {
	name       string
	what       string // for a reader: what it does
	cold, warm time.Duration
	deadline   time.Duration
	after      []string // parts that must have passed
	packages   []string // Debian packages that must be installed
	heavy      bool     // needs root, devices, and the memory of an emulated machine
	devices    bool     // needs root and devices, as a heavy part does, and no more memory than others
	alone      bool     // keeps all cores busy for minutes: nothing runs beside it
	nice       int      // of its programs: what a run does not wait for gives way to what it does
	env        []string // of its programs, beside the check's
	run        func(ctx context.Context, w *work) error
}

// work is what a part has in hand while it runs.
type work struct {
	*runner
	part  part
	log   *lineWriter
	tests tally
	notes []string // for the summary: what was left out, and why
	cpu   time.Duration
}

// result is how a part ended.
type result struct {
	part  part
	err   error
	took  time.Duration
	cpu   time.Duration // of the programs that it ran, and of theirs
	tests tally
	notes []string
	end   []string // where it failed, what its tests say, or the last lines of its log: who has only the end of a run's output must see why
}

type runner struct {
	root, tmp, logs string
	cache           *artifacts.Cache
	out             io.Writer // written to by several parts at once
	lanes           int       // how many parts may run at once
}

var errNotRun = errors.New("not run")

// runAll runs the parts, r.lanes of them at a time, each as soon as those before
// it are under way and those that it needs are over. The results are in the
// order of the parts.
func (r *runner) runAll(ctx context.Context, parts []part) []result {
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		fmt.Fprintln(r.out, "check:", err)
	}
	results := make([]result, len(parts))
	ended := make(chan int)
	var waiting, running []int
	failed := map[string]bool{}
	for i := range parts {
		waiting = append(waiting, i)
	}
	for len(waiting)+len(running) > 0 {
		for {
			n := next(parts, waiting, running, r.lanes)
			if n < 0 {
				break
			}
			i := waiting[n]
			waiting = slices.Delete(waiting, n, n+1)
			running = append(running, i)
			p, prefix := parts[i], fmt.Sprintf("[%2d/%d] %-10s", i+1, len(parts), parts[i].name)
			missing := slices.DeleteFunc(slices.Clone(p.after), func(name string) bool { return !failed[name] })
			go func() {
				switch {
				case ctx.Err() != nil:
					results[i] = result{part: p, err: fmt.Errorf("%w: interrupted", errNotRun)}
				case len(missing) > 0:
					results[i] = result{part: p, err: fmt.Errorf("%w: it needs %s, which failed", errNotRun, strings.Join(missing, ", "))}
					fmt.Fprintf(r.out, "%s %v\n", prefix, results[i].err)
				default:
					results[i] = r.runOne(ctx, prefix, p)
				}
				ended <- i
			}()
		}
		i := <-ended
		running = slices.DeleteFunc(running, func(j int) bool { return j == i })
		failed[parts[i].name] = results[i].err != nil
	}
	return results
}

// heavyLanes is how many heavy parts may run at once. Emulated CPUs of one machine wait for each other, and spin while the one that
// they wait for has no core: with two clusters and the kernel tests at once two cores took a third more CPU time, and longer.
const heavyLanes = 1

// next returns which of the waiting parts may start beside the running ones, as
// an index into waiting, or -1.
func next(parts []part, waiting, running []int, lanes int) int {
	if len(running) >= lanes || slices.ContainsFunc(running, func(i int) bool { return parts[i].alone }) {
		return -1
	}
	heavy := 0
	for _, i := range running {
		if parts[i].heavy {
			heavy++
		}
	}
	for n, i := range waiting {
		if parts[i].heavy && heavy >= heavyLanes {
			continue
		}
		if parts[i].alone && len(running) > 0 {
			return -1 // or it would never get the machine for itself
		}
		open := func(j int) bool { return slices.Contains(parts[i].after, parts[j].name) }
		if !slices.ContainsFunc(waiting, open) && !slices.ContainsFunc(running, open) {
			return n
		}
	}
	return -1
}

func (r *runner) runOne(ctx context.Context, prefix string, p part) result {
	path := filepath.Join(r.logs, p.name+".log")
	f, err := os.Create(path)
	if err != nil {
		return result{part: p, err: fmt.Errorf("make its log: %w", err)}
	}
	defer f.Close()
	fmt.Fprintf(r.out, "%s starts: %s\n", prefix, p.what)
	w := &work{runner: r, part: p, log: &lineWriter{w: f}}

	began, ended := time.Now(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		t := time.NewTicker(30 * time.Second)
		defer t.Stop()
		for {
			select {
			case <-ended:
				return
			case <-t.C:
				fmt.Fprintf(r.out, "%s %s: %s\n", prefix, time.Since(began).Round(time.Second), w.log.last())
			}
		}
	})
	pctx, cancel := context.WithTimeoutCause(ctx, p.deadline, fmt.Errorf("it took longer than its deadline, %s", p.deadline))
	err = p.run(pctx, w)
	if cause := context.Cause(pctx); cause != nil && err != nil {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	cancel()
	close(ended)
	wg.Wait()

	err = errors.Join(w.tests.verdict(), err) // which tests, before which command
	res := result{part: p, err: err, took: time.Since(began), cpu: w.cpu, tests: w.tests, notes: w.notes}
	if err != nil {
		fmt.Fprintf(w.log, "%s: %v\n", p.name, err)
		end := lastLines(path, 60)
		fmt.Fprintf(r.out, "%s FAILED after %s; the end of %s:\n%s\n", prefix, res.took.Round(time.Second), path, strings.Join(end, "\n"))
		if res.end = w.tests.reasons(); res.end == nil {
			res.end = end[max(0, len(end)-12):]
		}
	} else {
		fmt.Fprintf(r.out, "%s passed in %s%s\n", prefix, res.took.Round(time.Second), w.tests.brief())
	}
	return res
}

// command runs a program to its end, with its output in the part's log and, when
// lines is given, handed to it line by line instead. Its process group is asked
// to end when ctx ends, and killed if it does not.
func (w *work) command(ctx context.Context, env []string, lines func(string), argv ...string) error {
	return w.commandIn(ctx, w.root, env, lines, argv...)
}

// commandIn is command in another folder than the checkout's root.
func (w *work) commandIn(ctx context.Context, dir string, env []string, lines func(string), argv ...string) error {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = dir
	cmd.Env = slices.Concat(os.Environ(), w.part.env, env)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // a group of its own, for signals and for the scheduler
	const grace = 30 * time.Second
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	fmt.Fprintf(w.log, "$ %s\n", strings.Join(argv, " "))
	cmd.Stderr = w.log
	cmd.Stdout = w.log
	var split *splitter
	if lines != nil {
		split = &splitter{each: lines}
		cmd.Stdout = split
	}
	err := cmd.Start()
	if err == nil {
		host.GiveWay(cmd.Process.Pid, w.part.nice)
		err = cmd.Wait()
	}
	if cmd.ProcessState != nil {
		w.cpu += cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	if ctx.Err() != nil && cmd.Process != nil {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what of the group did not end by itself
	}
	if split != nil {
		split.end()
	}
	if err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return nil
}

// output is command for a program whose whole output is wanted.
func (w *work) output(ctx context.Context, argv ...string) (string, error) {
	var b strings.Builder
	err := w.command(ctx, nil, func(l string) { b.WriteString(l + "\n") }, argv...)
	return b.String(), err
}

// lineWriter is a log that several programs write to, and knows its last line.
type lineWriter struct {
	mu   sync.Mutex
	w    io.Writer
	line string
}

func (l *lineWriter) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for part := range bytes.Lines(b) {
		if s := strings.TrimSpace(string(part)); s != "" {
			l.line = s
		}
	}
	return l.w.Write(b)
}

func (l *lineWriter) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return cutTo(l.line, 110)
}

// splitter hands complete lines on.
type splitter struct {
	each func(string)
	rest []byte
}

func (s *splitter) Write(b []byte) (int, error) {
	s.rest = append(s.rest, b...)
	for {
		i := bytes.IndexByte(s.rest, '\n')
		if i < 0 {
			return len(b), nil
		}
		s.each(string(s.rest[:i]))
		s.rest = s.rest[i+1:]
	}
}

func (s *splitter) end() {
	if len(s.rest) > 0 {
		s.each(string(s.rest))
	}
}

// lastLines are a file's last lines, indented and each cut to what a reader takes in.
func lastLines(path string, n int) []string {
	b, err := os.ReadFile(path)
	if err != nil {
		return []string{err.Error()}
	}
	lines := strings.Split(strings.TrimRight(string(b), "\n"), "\n")
	lines = lines[max(0, len(lines)-n):]
	for i, l := range lines {
		lines[i] = "    " + cutTo(l, mostRunes)
	}
	return lines
}

// mostRunes is how much of a line a reader takes in.
const mostRunes = 1000

func cutTo(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}

// console lets several parts write to one place, a line of one never within a
// line of another.
type console struct {
	mu sync.Mutex
	w  io.Writer
}

func (c *console) Write(b []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.w.Write(b)
}
