package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// allowedSkips are the tests that may be skipped, by package and name, with the
// reason. Everything else that is skipped fails its part.
var allowedSkips = map[string]string{}

// tally counts tests. Each test and each subtest counts as one.
type tally struct {
	passed, failed int
	skipped        []string            // package.Test
	failures       []string            // package.Test, or a package that did not build
	said           map[string][]string // the last lines of those that have not passed, by the same names
}

// mostSaid is how many lines of a test that fails the summary shows.
const mostSaid = 12

// say notes a line that a test printed.
func (t *tally) say(pkg, test, line string) {
	if line = strings.TrimRight(line, "\n"); strings.TrimSpace(line) == "" || strings.HasPrefix(line, "=== ") {
		return
	}
	name := nameOf(pkg, test)
	if t.said == nil {
		t.said = map[string][]string{}
	}
	lines := append(t.said[name], cutTo(line, mostRunes))
	t.said[name] = lines[max(0, len(lines)-mostSaid):]
}

// reasons are what the tests that failed have printed last. Of one that fails because a subtest does, that says why.
func (t *tally) reasons() (out []string) {
	for _, f := range t.failures {
		if slices.ContainsFunc(t.failures, func(o string) bool { return strings.HasPrefix(o, f+"/") }) {
			continue
		}
		out = append(out, "  "+f+":")
		for _, l := range t.said[f] {
			out = append(out, "    "+l)
		}
	}
	return out
}

func nameOf(pkg, test string) string {
	name := strings.TrimPrefix(pkg, modulePrefix)
	if test != "" {
		name += "." + test
	}
	return name
}

func (t *tally) brief() string {
	if t.passed+t.failed+len(t.skipped) == 0 {
		return ""
	}
	return fmt.Sprintf(", %d tests passed", t.passed)
}

// verdict is an error when a test failed or was skipped without a known reason.
func (t *tally) verdict() error {
	var errs []error
	if len(t.failures) > 0 {
		errs = append(errs, fmt.Errorf("failed: %s", strings.Join(t.failures, ", ")))
	}
	var unknown []string
	for _, s := range t.skipped {
		if allowedSkips[s] == "" {
			unknown = append(unknown, s)
		}
	}
	if len(unknown) > 0 {
		errs = append(errs, fmt.Errorf("skipped without a reason in allowedSkips: %s", strings.Join(unknown, ", ")))
	}
	return errors.Join(errs...)
}

func (t *tally) count(action, pkg, test string) {
	name := nameOf(pkg, test)
	switch action {
	case "pass":
		if test != "" {
			t.passed++
		}
		delete(t.said, name)
	case "skip":
		if test != "" { // a package without tests "skips" too
			t.skipped = append(t.skipped, name)
		}
	case "fail", "build-fail":
		if test != "" {
			t.failed++
		}
		// A package fails because its tests do; it is named only when none did.
		if test == "" && slices.ContainsFunc(t.failures, func(f string) bool { return strings.HasPrefix(f, name+".") || f == name }) {
			return
		}
		t.failures = append(t.failures, name)
	}
}

const modulePrefix = "github.com/branchline-cni/branchline/"

// event is one line of go test -json: go doc test2json.
type event struct {
	Action, Package, Test, Output, ImportPath string
	Elapsed                                   float64
}

// goTest reads one line of go test -json: counts it, and writes what a person
// wants to read of it to the log.
func (w *work) goTest(line string) {
	var e event
	if err := json.Unmarshal([]byte(line), &e); err != nil {
		fmt.Fprintln(w.log, line)
		return
	}
	switch e.Action {
	case "output":
		fmt.Fprint(w.log, e.Output)
		w.tests.say(e.Package, e.Test, e.Output)
	case "build-output":
		fmt.Fprint(w.log, e.Output)
		pkg, _, _ := strings.Cut(e.ImportPath, " ")
		w.tests.say(pkg, "", e.Output)
	case "build-fail":
		pkg, _, _ := strings.Cut(e.ImportPath, " ")
		w.tests.count(e.Action, pkg, "")
	default:
		w.tests.count(e.Action, e.Package, e.Test)
	}
}

// --- PASS: TestX/sub (0.00s), indented by four spaces for each level
var verboseLine = regexp.MustCompile(`^\s*--- (PASS|FAIL|SKIP): (\S+) \(`)

// verbose reads one line of go test -v, which is what a test binary prints when
// it runs without the go command. The runner of the kernel tests says which
// package it is at with a line "=== PKG name".
func (w *work) verbose(at *position, line string) {
	fmt.Fprintln(w.log, line)
	if name, ok := strings.CutPrefix(line, "=== PKG "); ok {
		*at = position{pkg: strings.ReplaceAll(strings.TrimSpace(name), "__", "/")}
		return
	}
	if m := verboseTurn.FindStringSubmatch(line); m != nil {
		at.test = m[1]
		return
	}
	w.tests.say(at.pkg, at.test, line)
	if m := verboseLine.FindStringSubmatch(line); m != nil {
		w.tests.count(strings.ToLower(m[1]), at.pkg, m[2])
	}
}

// position is whose lines a test binary prints.
type position struct{ pkg, test string }

// === RUN   TestX/sub, and CONT, NAME and PAUSE where tests take turns
var verboseTurn = regexp.MustCompile(`^=== (?:RUN|CONT|NAME|PAUSE)\s+(\S+)`)

func minutes(d time.Duration) string { return fmt.Sprintf("%.1f", d.Minutes()) }

// claim counts each claim that the walk-through saw as a test.
func (w *work) claim(line string) {
	fmt.Fprintln(w.log, line)
	if strings.HasPrefix(strings.TrimSpace(line), "[seen] ") {
		w.tests.passed++
	}
}
