package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
)

// limit is what the last of 700 pods may cost, in terms of what the only pod costs.
const limit = 1.1

// Cell is the median of one measure of one node.
type Cell struct {
	Layout   string  `json:"layout"`
	Regular  int     `json:"regularPods"`
	Branch   int     `json:"branchPods"`
	Measure  string  `json:"measure"`
	Unit     string  `json:"unit"`
	Median   float64 `json:"median"`
	Rounds   int     `json:"rounds"`
	VsFirst  float64 `json:"costVsFirstPod"` // what it costs in terms of the same node with one regular pod; above 1 is worse
	VsLayout float64 `json:"costVsTwoRules"` // in terms of the layout of two rules per pod
}

// Report is all that was measured.
type Report struct {
	Machine string `json:"machine"`
	Cells   []Cell `json:"cells"`
	// Worst is what a packet of our 700th pod costs in terms of the only pod's, in the dearest of all measures; Holds
	// says that this is within the limit.
	Worst float64 `json:"worstOfOurs"`
	Holds bool    `json:"withinLimit"`
}

var measures = []struct{ name, unit string }{
	{roundTrip, "µs"}, {toPod, "packets per CPU second"}, {fromPod, "packets per CPU second"}, {roundTripStrict, "µs"},
}

// cost says how much more a costs than b, round by round: what disturbed a round disturbed both sides of its ratio.
func cost(measure string, a, b []float64) float64 {
	var ratios []float64
	for i := range min(len(a), len(b)) {
		if measure == toPod || measure == fromPod {
			ratios = append(ratios, b[i]/a[i])
		} else {
			ratios = append(ratios, a[i]/b[i])
		}
	}
	return median(ratios)
}

// median of the values; 0 for none.
func median(values []float64) float64 {
	if len(values) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(values))
	return (s[(len(s)-1)/2] + s[len(s)/2]) / 2
}

func summarize(worlds []*world) Report {
	find := func(layout string, regular, branch int) *world {
		i := slices.IndexFunc(worlds, func(w *world) bool { return w.layout.name == layout && w.regular == regular && w.branch == branch })
		return worlds[i]
	}
	r := Report{Machine: fmt.Sprintf("%s/%s, %d CPUs", runtime.GOOS, runtime.GOARCH, runtime.NumCPU())}
	for _, w := range worlds {
		for _, m := range measures {
			samples := w.samples[m.name]
			if len(samples) == 0 {
				continue
			}
			c := Cell{Layout: w.layout.name, Regular: w.regular, Branch: w.branch, Measure: m.name, Unit: m.unit, Median: median(samples), Rounds: len(samples),
				VsFirst:  cost(m.name, samples, find(w.layout.name, regularCounts[0], w.branch).samples[m.name]),
				VsLayout: cost(m.name, samples, find(twoRules, w.regular, w.branch).samples[m.name])}
			r.Cells = append(r.Cells, c)
			if c.Layout == ours && c.Regular == regularCounts[len(regularCounts)-1] {
				r.Worst = max(r.Worst, c.VsFirst)
			}
		}
	}
	r.Holds = r.Worst <= limit
	return r
}

func (r Report) print(out io.Writer) {
	for _, m := range measures {
		fmt.Fprintf(out, "\n%s (%s; in brackets the cost in terms of one regular pod)\n%-34s", m.name, m.unit, "branch pods / regular pods")
		for _, branch := range branchCounts {
			for _, regular := range regularCounts {
				fmt.Fprintf(out, " %14s", fmt.Sprintf("%d/%d", branch, regular))
			}
		}
		fmt.Fprintln(out)
		for _, l := range layouts {
			fmt.Fprintf(out, "%-34s", l.name)
			for _, branch := range branchCounts {
				for _, regular := range regularCounts {
					fmt.Fprintf(out, " %14s", r.text(l.name, m.name, regular, branch))
				}
			}
			fmt.Fprintln(out)
		}
	}
	verdict := "within"
	if !r.Holds {
		verdict = "ABOVE"
	}
	fmt.Fprintf(out, "\nThe 700th pod's packet costs at most %.2f of the only pod's in our layout: %s the limit of %.2f. %s.\n", r.Worst, verdict, limit, r.Machine)
}

func (r Report) text(layout, measure string, regular, branch int) string {
	i := slices.IndexFunc(r.Cells, func(c Cell) bool {
		return c.Layout == layout && c.Measure == measure && c.Regular == regular && c.Branch == branch
	})
	if i < 0 {
		return "-"
	}
	c := r.Cells[i]
	if c.Unit == "µs" {
		return fmt.Sprintf("%.1f (%.2f)", c.Median, c.VsFirst)
	}
	return fmt.Sprintf("%.0fk (%.2f)", c.Median/1000, c.VsFirst)
}
