package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// fault is one to seed into the CNI executable: one piece of one source file, and what is there in its place.
type fault struct {
	name     string
	file     string // relative to the checkout
	first    string // pattern of the test that is tried first; "": the usual one
	old, new string
}

// parseFaults reads a list of faults. Lines that begin with # are for people. Which test is tried first need not be said.
//
//	-- name: path/of/file.go, first pattern/of/the/test
//	what is there
//	=>
//	what is there instead, which may be nothing
func parseFaults(list string) ([]fault, error) {
	var out []fault
	names := map[string]bool{}
	for i, part := range strings.Split("\n"+list, "\n-- ") {
		if i == 0 {
			continue
		}
		head, body, _ := strings.Cut(part, "\n")
		name, file, ok := strings.Cut(head, ": ")
		file, first, _ := strings.Cut(file, ", first ")
		if !ok || name == "" || strings.ContainsAny(name, "/. ") || names[name] {
			return nil, fmt.Errorf("fault %d: %q is no new name with a file", i, head)
		}
		names[name] = true
		var lines []string
		for line := range strings.Lines(body) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.TrimSuffix(line, "\n"))
			}
		}
		old, changed, ok := strings.Cut("\n"+strings.Join(lines, "\n")+"\n", "\n=>\n")
		if old = strings.Trim(old, "\n"); !ok || old == "" {
			return nil, fmt.Errorf("fault %s: no line => after what is there", name)
		}
		out = append(out, fault{name, file, first, old, strings.Trim(changed, "\n")})
	}
	if len(out) == 0 {
		return nil, errors.New("no fault is in the list")
	}
	return out, nil
}

// seed is the source with the fault. One that is not to be found any more, or in several places, is an error: the list
// would prove nothing.
func (f fault) seed(source []byte) ([]byte, error) {
	if n := bytes.Count(source, []byte(f.old)); n != 1 {
		return nil, fmt.Errorf("fault %s no longer applies: what it replaces is %d times in %s, want once: bring the list up to date", f.name, n, f.file)
	}
	return bytes.Replace(source, []byte(f.old), []byte(f.new), 1), nil
}

// writeOverlay writes, into dir, the sources with the faults and the file for go build's -overlay, which has them compiled
// in the place of the ones in the checkout.
func writeOverlay(dir, checkout string, faults ...fault) (path string, err error) {
	if checkout, err = filepath.Abs(checkout); err != nil {
		return "", err
	}
	sources, replace := map[string][]byte{}, map[string]string{}
	for _, f := range faults {
		original := filepath.Join(checkout, filepath.FromSlash(f.file))
		if sources[original] == nil {
			if sources[original], err = os.ReadFile(original); err != nil {
				return "", err
			}
			replace[original] = filepath.Join(dir, fmt.Sprintf("source-%d.go", len(replace)))
		}
		if sources[original], err = f.seed(sources[original]); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	errs := []error{os.MkdirAll(dir, 0o755), os.WriteFile(path, text, 0o644)}
	for original, source := range sources {
		errs = append(errs, os.WriteFile(replace[original], source, 0o644))
	}
	return path, errors.Join(errs...)
}

// mutant is a CNI executable with one fault.
type mutant struct {
	fault
	executable string
}

// buildMutants builds an executable for each fault of the list, each in a folder of its own below dir. The checkout stays
// as it is.
func buildMutants(ctx context.Context, list, dir string) ([]mutant, error) {
	text, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	faults, err := parseFaults(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", list, err)
	}
	var out []mutant
	for _, f := range faults {
		own := filepath.Join(dir, f.name)
		overlay, err := writeOverlay(own, ".", f)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", list, err)
		}
		m := mutant{f, filepath.Join(own, "aws-cni")}
		if err := buildExecutable(ctx, m.executable, awsCNI, "-overlay", overlay); err != nil {
			return nil, fmt.Errorf("%s: fault %s: %w", list, f.name, err)
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
		for _, p := range m.order(patterns) {
			failed, err := try(m.executable, p)
			if err != nil {
				return fmt.Errorf("with fault %s: %w", m.name, err)
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
			missed = append(missed, m.name)
			fmt.Fprintf(out, "MISS\t%s\t%v\n", m.name, time.Since(began).Round(time.Second))
			continue
		}
		fmt.Fprintf(out, "seen\t%s\tby %s\t%v\n", m.name, seen, time.Since(began).Round(time.Second))
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
func (f fault) order(patterns []string) []string {
	if f.first == "" {
		return patterns
	}
	return append([]string{f.first}, patterns...)
}
