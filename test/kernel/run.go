package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// tally counts top-level tests.
type tally struct {
	packages, passed int
	failed           []string // tests, or what a binary died of
}

func (t *tally) add(o tally) {
	t.packages += o.packages
	t.passed += o.passed
	t.failed = append(t.failed, o.failed...)
}

func (t tally) ok() bool { return len(t.failed) == 0 && t.passed > 0 }

func (t tally) String() string {
	s := fmt.Sprintf("%d passed, %d failed in %d packages", t.passed, len(t.failed), t.packages)
	if len(t.failed) > 0 {
		s += ": " + strings.Join(t.failed, ", ")
	}
	return s
}

// results reads the output of a test binary that runs with -test.v, line by line. With show nil it only remembers.
type results struct {
	show    io.Writer
	partial []byte
	all     bytes.Buffer
	passed  int
	failed  []string
}

// Write implements io.Writer.
func (r *results) Write(b []byte) (int, error) {
	r.all.Write(b)
	if r.show != nil {
		if _, err := r.show.Write(b); err != nil {
			return 0, err
		}
	}
	r.partial = append(r.partial, b...)
	for {
		line, rest, ok := bytes.Cut(r.partial, []byte("\n"))
		if !ok {
			return len(b), nil
		}
		r.line(string(line))
		r.partial = append(r.partial[:0], rest...)
	}
}

// line understands the lines about top-level tests; those about subtests are indented.
func (r *results) line(line string) {
	verdict, rest, ok := strings.Cut(line, ": ")
	if !ok {
		return
	}
	name, _, _ := strings.Cut(rest, " ")
	switch verdict {
	case "--- PASS":
		r.passed++
	case "--- FAIL":
		r.failed = append(r.failed, name)
	case "--- SKIP":
		r.failed = append(r.failed, name+" (skipped itself)")
	}
}

// execute runs one test binary in the VM.
func execute(ctx context.Context, vm instance.Instance, o options, t testBinary, env []string, out io.Writer, args ...string) (*results, tally) {
	// The binary's own time-out comes first: it tells where each goroutine hangs.
	ctx, cancel := context.WithTimeoutCause(ctx, o.timeout+15*time.Second, fmt.Errorf("not done within %v", o.timeout))
	defer cancel()
	argv := append([]string{t.path, "-test.v", "-test.timeout=" + o.timeout.String()}, args...)
	if o.run != "" {
		argv = append(argv, "-test.run="+o.run)
	}
	res := &results{}
	if o.verbose {
		fmt.Fprintln(out, "=== PKG", t.pkg)
		res.show = out
	}
	r, err := vm.Exec(ctx, instance.Command{Argv: argv, Dir: t.dir, Env: env, Stdout: res, Stderr: res})
	sum := tally{packages: 1, passed: res.passed}
	for _, f := range res.failed {
		sum.failed = append(sum.failed, t.pkg+"."+f)
	}
	switch {
	case err != nil:
		sum.failed = append(sum.failed, fmt.Sprintf("%s (%v)", t.pkg, err))
	case r.ExitCode != 0 && len(res.failed) == 0:
		sum.failed = append(sum.failed, fmt.Sprintf("%s (exit code %d)", t.pkg, r.ExitCode))
	}
	return res, sum
}

// runBinary runs one test binary in the VM. What fails is in the tally, with its whole output shown.
func runBinary(ctx context.Context, vm instance.Instance, o options, t testBinary, env []string, out io.Writer) tally {
	began := time.Now()
	res, sum := execute(ctx, vm, o, t, env, out)
	if len(sum.failed) > 0 && !o.verbose {
		fmt.Fprintln(out, "=== PKG", t.pkg)
		out.Write(res.all.Bytes())
	}
	verdict := "ok  "
	if len(sum.failed) > 0 {
		verdict = "FAIL"
	}
	fmt.Fprintf(out, "%s\t%s\t%d passed, %d failed\t%v\n", verdict, t.pkg, sum.passed, len(sum.failed), time.Since(began).Round(10*time.Millisecond))
	return sum
}
