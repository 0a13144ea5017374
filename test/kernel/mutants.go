package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/test/faults"
)

// mutant is a CNI executable with one fault.
type mutant struct {
	faults.Fault
	executable string
}

// buildMutants builds an executable for each fault of the list, each in a folder of its own below dir. The checkout stays
// as it is.
func buildMutants(ctx context.Context, list, dir string) ([]mutant, error) {
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	all, err := faults.Parse(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	var out []mutant
	for _, f := range all {
		own := filepath.Join(dir, f.Name)
		overlay, err := faults.WriteOverlay(own, ".", f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		m := mutant{f, filepath.Join(own, "aws-cni")}
		if err := buildExecutable(ctx, m.executable, awsCNI, "-overlay", overlay); err != nil {
			return nil, fmt.Errorf("%s: fault %s: %w", list, f.Name, err)
		}
		out = append(out, m)
	}
	return out, nil
}

// runMutants runs the tests with each of the executables that have a fault. One after the other of the patterns' tests
// gets its chance, the quick ones first, until one fails: a fault that no test sees is what fails here. First all of them
// must pass with the executable as it ships.
func runMutants(ctx context.Context, vm instance.Instance, o options, tests []testBinary, mutants []mutant, patterns []string, env func(executable string) []string, shipped string, out io.Writer) error {
	// A binary that fails without a failed test has not seen anything: it hangs, or could not clean up.
	try := func(executable, pattern string) (failed []string, err error) {
		var sum tally
		for _, t := range tests {
			o := o
			o.run = pattern
			res, one := execute(ctx, vm, o, t, env(executable), out, "-test.failfast")
			failed = append(failed, res.failed...)
			sum.add(one)
		}
		if len(failed) == 0 && !sum.ok() {
			err = fmt.Errorf("-run %s: %s", pattern, sum)
		}
		return failed, err
	}
	for _, p := range patterns {
		began := time.Now()
		if failed, err := try(shipped, p); err != nil || failed != nil {
			return fmt.Errorf("with the executable as it ships: %w", errors.Join(err, fmt.Errorf("failed tests: %q", failed)))
		}
		fmt.Fprintf(out, "ok  \tno fault\t%s\t%v\n", p, time.Since(began).Round(time.Second))
	}
	var missed []string
	for _, m := range mutants {
		began, seen := time.Now(), ""
		for _, p := range order(m.Fault, patterns) {
			failed, err := try(m.executable, p)
			if err != nil {
				return fmt.Errorf("with fault %s: %w", m.Name, err)
			}
			if failed != nil {
				seen = strings.Join(failed, ", ")
				break
			}
		}
		if ctx.Err() != nil {
			return errors.New("interrupted")
		}
		if seen == "" {
			missed = append(missed, m.Name)
			fmt.Fprintf(out, "MISS\t%s\t%v\n", m.Name, time.Since(began).Round(time.Second))
			continue
		}
		fmt.Fprintf(out, "seen\t%s\tby %s\t%v\n", m.Name, seen, time.Since(began).Round(time.Second))
	}
	fmt.Fprintf(out, "seeded faults: %d of %d seen\n", len(mutants)-len(missed), len(mutants))
	if missed != nil {
		return fmt.Errorf("no test has seen: %s", strings.Join(missed, ", "))
	}
	return nil
}

// seers are the patterns of the tests that are to see faults, the quick one first, or the only one that is asked for.
func seers(only string) []string {
	if only != "" {
		return []string{only}
	}
	return []string{"^TestP1RandomInterleavings", "^TestAtAnyNetlinkCall"}
}

// order puts what the list says before the others.
func order(f faults.Fault, patterns []string) []string {
	if f.First == "" {
		return patterns
	}
	return append([]string{f.First}, patterns...)
}
