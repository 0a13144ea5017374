// Command mutants shows that tests see the faults of a list: each is seeded alone into the sources, and the tests of a package
// must fail with it.
//
//	go run ./test/mutants [-run PATTERN] [-only NAME] FILE PACKAGE
//
// It is for tests that run anywhere; those of the kernel have test/kernel.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/test/faults"
)

func main() {
	pattern := flag.String("run", "^TestP5P50TheAgentNeverLiesAboutAddresses(OfSeveralCards|OfAnIPv6Node)?$", "`pattern` of the tests that are to see the faults")
	only := flag.String("only", "", "the `name` of one fault")
	checks := flag.String("checks", "3000", "how many cases a property is tried with")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := errors.New("usage: mutants [-run PATTERN] [-only NAME] FILE PACKAGE")
	if flag.NArg() == 2 {
		err = run(ctx, flag.Arg(0), flag.Arg(1), *pattern, *only, *checks, os.Stdout)
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// mostTime bounds the tests with one fault. Tests that have not failed by then have not seen it: they may just be slow.
const mostTime = 10 * time.Minute

func run(ctx context.Context, list, pkg, pattern, only, checks string, out io.Writer) error {
	text, err := os.ReadFile(list)
	if err != nil {
		return err
	}
	all, err := faults.Parse(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", list, err)
	}
	dir, err := os.MkdirTemp("", "mutants-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var missed []string
	seen := 0
	for _, f := range all {
		if only != "" && f.Name != only {
			continue
		}
		began := time.Now()
		p := pattern
		if f.First != "" {
			p = f.First
		}
		why, err := try(ctx, filepath.Join(dir, f.Name), pkg, p, checks, f)
		switch {
		case err != nil:
			return fmt.Errorf("fault %s: %w", f.Name, err)
		case why == "":
			missed = append(missed, f.Name)
			fmt.Fprintf(out, "MISS\t%s\t%v\n", f.Name, time.Since(began).Round(time.Second))
		default:
			seen++
			fmt.Fprintf(out, "seen\t%s\t%s\t%v\n", f.Name, why, time.Since(began).Round(time.Second))
		}
	}
	fmt.Fprintf(out, "seeded faults: %d of %d seen\n", seen, seen+len(missed))
	if missed != nil || seen == 0 {
		return fmt.Errorf("no test has seen: %s", strings.Join(missed, ", "))
	}
	return nil
}

var said = regexp.MustCompile(`(?m)(?:failed|panic|can not reproduce|_test\.go:\d+:).*$`)

// try returns what the tests say of the fault; empty: nothing.
func try(ctx context.Context, dir, pkg, pattern, checks string, f faults.Fault) (why string, err error) {
	overlay, err := faults.WriteOverlay(dir, ".", f)
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "test")
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", binary, pkg)
	if b, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build the tests of %s: %w\n%s", pkg, err, b)
	}
	defer os.Remove(binary)
	tests := exec.CommandContext(ctx, binary, "-test.run", pattern, "-test.timeout", mostTime.String(), "-test.failfast")
	tests.Dir = pkg
	tests.Env = append(os.Environ(), "RAPID_CHECKS="+checks, "RAPID_NOFAILFILE=1", "RAPID_SHRINKTIME=1s")
	b, err := tests.CombinedOutput()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return "", nil
	case ctx.Err() != nil || !errors.As(err, &exit):
		return "", err
	}
	if bytes.Contains(b, []byte("panic: test timed out after")) {
		return "", nil
	}
	if why = said.FindString(string(b)); why == "" {
		why = "the tests end with " + exit.Error()
	}
	return why, nil
}
