package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"time"
)

// summarize prints the table that ends a run and says whether all is well; took
// is what a clock on the wall says, as parts run beside each other. The
// counts of its last line are of tests, plus one for each part that is more than
// its tests (a linter, a build) or that failed without a test to blame.
func summarize(w io.Writer, results []result, left []string, logs string, took time.Duration) bool {
	fmt.Fprintf(w, "\n%-10s  %-7s  %7s  %7s  %6s  %6s  %7s\n", "part", "result", "minutes", "of CPU", "passed", "failed", "skipped")
	passed, failed := 0, 0
	var cpu time.Duration
	var reasons []string
	ok := true
	for _, r := range results {
		verdict := "passed"
		switch {
		case errors.Is(r.err, errNotRun):
			verdict = "NOT RUN"
		case r.err != nil:
			verdict = "FAILED"
		}
		fmt.Fprintf(w, "%-10s  %-7s  %7s  %7s  %6d  %6d  %7d\n",
			r.part.name, verdict, minutes(r.took), minutes(r.cpu), r.tests.passed, r.tests.failed, len(r.tests.skipped))
		cpu += r.cpu
		passed += r.tests.passed
		failed += r.tests.failed
		if r.err != nil {
			ok = false
			if r.tests.failed == 0 {
				failed++
			}
			reasons = append(reasons, fmt.Sprintf("%s: %s (log: %s)", r.part.name, firstLine(r.err.Error()), filepath.Join(logs, r.part.name+".log")))
			reasons = append(reasons, r.end...)
		} else if r.tests.passed == 0 {
			passed++
		}
		for _, s := range r.tests.skipped {
			left = append(left, s+": "+orUnknown(allowedSkips[s]))
		}
		left = append(left, r.notes...)
	}
	fmt.Fprintf(w, "%-10s  %-7s  %7s  %7s\n", "all", "", minutes(took), minutes(cpu))
	if len(left) > 0 {
		fmt.Fprintf(w, "\nleft out:\n  %s\n", strings.Join(left, "\n  "))
	}
	if len(reasons) > 0 {
		fmt.Fprintf(w, "\nwhat failed:\n  %s\n", strings.Join(reasons, "\n  "))
	}
	fmt.Fprintf(w, "\n%d passed, %d failed\n", passed, failed)
	return ok && failed == 0
}

func firstLine(s string) string {
	line, _, _ := strings.Cut(s, "\n")
	return cutTo(line, 400)
}

func orUnknown(reason string) string {
	if reason == "" {
		return "skipped without a reason"
	}
	return reason
}
