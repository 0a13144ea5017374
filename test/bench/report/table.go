package report

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/series"
	"github.com/branchline-cni/branchline/test/bench/stats"
)

// Print prints the document as tables, with the verdicts at the end of each place.
func (d Document) Print(w io.Writer) error {
	var b strings.Builder
	for _, p := range d.Places {
		p.print(&b)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (p Place) print(b *strings.Builder) {
	fmt.Fprintf(b, "\n== %s: Linux %s, %d CPUs, %s; %d rounds of %d pods ==\n", p.Name, p.Kernel, p.CPUs, p.Go, p.Rounds, p.Pods)
	for _, verb := range []string{series.ADD, series.DEL} {
		p.printVerb(b, verb)
	}
	if len(p.Growth) > 0 {
		p.printGrowth(b)
	}
	if r := p.Reliability; r != nil {
		fmt.Fprintf(b, "\n%d runs of %d pods at concurrency %d by %s in %.0f s: %d ADDs and %d DELs failed, %d links are left\n",
			r.Runs, r.Pods, r.Concurrency, r.Contender, r.Seconds, r.FailedADDs, r.FailedDELs, r.LinksLeft)
		for _, f := range r.Failures {
			fmt.Fprintf(b, "  %s\n", f)
		}
	}
	if v := p.Verdicts(); len(v) > 0 {
		fmt.Fprintln(b)
		for _, line := range v {
			fmt.Fprintln(b, line)
		}
	}
}

func (p Place) printVerb(b *strings.Builder, verb string) {
	fmt.Fprintf(b, "\n%s\n", verb)
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "at a time\t\tp50 ms\tp99 ms\twall/run ms\tper s\tCPU ms\tpeak MiB\tof (%s)\tits CPU\tof %s\tfailed\t\n", Basis, contender.Ours)
	last := 0
	for _, c := range byConcurrency(p.Cells, verb) {
		at := ""
		if c.Concurrency != last {
			at, last = fmt.Sprint(c.Concurrency), c.Concurrency
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%d\t\n", at, c.Contender,
			number(c.P50, 2), number(c.P99, 2), number(c.WallPerRun, 2), number(c.PerSecond, 0), number(c.CPU, 2),
			number(float64(c.PeakKiB)/1024, 1), ratio(c.OfBasis), ratio(c.CPUOfBasis), ratio(c.OfOurs), c.Failed)
	}
	t.Flush()
	for _, c := range byConcurrency(p.Cells, verb) {
		for _, f := range c.Failures {
			fmt.Fprintf(b, "  failed: %s\n", f)
		}
	}
}

func byConcurrency(cells []Cell, verb string) []Cell {
	var out []Cell
	for _, c := range cells {
		if c.Verb == verb {
			out = append(out, c)
		}
	}
	slices.SortStableFunc(out, func(a, b Cell) int { return a.Concurrency - b.Concurrency })
	return out
}

func (p Place) printGrowth(b *strings.Builder) {
	fmt.Fprintf(b, "\nADD of the n-th pod, divided by that of a first pod in the same seconds\n")
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(t, "pod\t\tms\tfirst ms\tratio\t\n")
	last := 0
	for _, g := range p.Growth {
		at := ""
		if g.Pod != last {
			at, last = fmt.Sprint(g.Pod), g.Pod
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t\n", at, g.Contender, number(g.Here, 2), number(g.First, 2), ratio(g.ToFirst))
	}
	t.Flush()
}

func number(v float64, decimals int) string {
	if v == 0 {
		return "-"
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

func ratio(r stats.Ratio) string {
	if r.Rounds == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2f (%.2f-%.2f)", r.Median, r.Low, r.High)
}
