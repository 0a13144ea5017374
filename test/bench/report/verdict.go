package report

import (
	"fmt"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/series"
)

// The budgets of ADD of a regular pod.
const (
	mostOfBasis = 2.0
	// throughputNoise is what a run may take longer at a higher concurrency before we say that throughput falls.
	throughputNoise = 1.05
	mostGrowth      = 1.10
	leastGrowth     = 0.90
)

// Verdicts holds the place's numbers against the budgets, one line each.
func (p Place) Verdicts() []string {
	var out []string
	say := func(ok bool, format string, args ...any) {
		verdict := "over the budget"
		if ok {
			verdict = "within the budget"
		}
		out = append(out, fmt.Sprintf(format, args...)+": "+verdict)
	}
	for _, c := range p.Cells {
		if c.Contender != contender.Ours || c.Verb != series.ADD {
			continue
		}
		if c.OfBasis.Rounds > 0 {
			say(c.OfBasis.Median <= mostOfBasis, "ADD at %d at a time takes %s of (%s), at most %.1f", c.Concurrency, ratio(c.OfBasis), Basis, mostOfBasis)
			out = append(out, fmt.Sprintf("  and %s of its CPU time", ratio(c.CPUOfBasis)))
			if s, ok := p.against(StrictBasis, c.Concurrency); ok {
				out = append(out, fmt.Sprintf("  and %s of (%s), which has one process less", s, StrictBasis))
			}
		}
		if c.Concurrency > 1 && c.ToAlone.Rounds > 0 {
			say(c.ToAlone.Median <= throughputNoise, "an ADD at %d at a time takes %s of one alone in wall time per ADD, at most 1", c.Concurrency, ratio(c.ToAlone))
		}
	}
	var last Point
	for _, g := range p.Growth {
		if g.Contender == contender.Ours {
			last = g
		}
	}
	if last.ToFirst.Rounds > 0 {
		say(last.ToFirst.Median >= leastGrowth && last.ToFirst.Median <= mostGrowth,
			"ADD of pod %d takes %s of that of the first, within %.1f and %.1f", last.Pod, ratio(last.ToFirst), leastGrowth, mostGrowth)
	}
	if r := p.Reliability; r != nil {
		say(r.FailedADDs == 0, "%d of %d ADDs failed", r.FailedADDs, r.Runs*r.Pods)
	}
	return out
}

// against is aws-cni's ADD at a concurrency divided by a sum's, as one ratio of the two medians: the document has no
// rounds of the sum.
func (p Place) against(name string, concurrency int) (string, bool) {
	var ours, basis float64
	for _, c := range p.Cells {
		if c.Verb == series.ADD && c.Concurrency == concurrency {
			switch c.Contender {
			case contender.Ours:
				ours = c.OfBasis.Median
			case name:
				basis = c.OfBasis.Median
			}
		}
	}
	if ours == 0 || basis == 0 {
		return "", false
	}
	return fmt.Sprintf("%.2f", ours/basis), true
}

// Failed counts the runs that failed.
func (d Document) Failed() int {
	n := 0
	for _, p := range d.Places {
		for _, c := range p.Cells {
			n += c.Failed
		}
		if p.Reliability != nil {
			n += p.Reliability.FailedADDs + p.Reliability.FailedDELs
		}
	}
	return n
}
