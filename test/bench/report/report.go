// Package report turns what was measured into what is told: one document that is written as JSON and printed as tables,
// with the verdicts on the budgets. It measures nothing.
package report

import (
	"encoding/json"
	"fmt"
	"io"
	"time"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/series"
	"github.com/branchline-cni/branchline/test/bench/stats"
)

// The rows that are sums of others: what the budget is a multiple of, and the same with the bare loop's process left out.
const (
	Basis       = contender.Bare + " + " + contender.OneCall
	StrictBasis = "loop alone + " + contender.OneCall
)

// Document is everything that one run of the benchmark has measured.
type Document struct {
	Places []Place `json:"places"`
}

// Place is a machine with its kernel: this one, or the VM.
type Place struct {
	Name        string       `json:"name"` // native or vm
	Kernel      string       `json:"kernel"`
	CPUs        int          `json:"cpus"`
	Go          string       `json:"go"`
	Pods        int          `json:"pods"` // of a phase
	Rounds      int          `json:"rounds"`
	Cells       []Cell       `json:"cells"`
	Growth      []Point      `json:"growth,omitempty"`
	Reliability *Reliability `json:"reliability,omitempty"`
}

// Cell is one contender, verb and concurrency. Times are in milliseconds.
type Cell struct {
	Contender   string   `json:"contender"`
	Verb        string   `json:"verb"`
	Concurrency int      `json:"concurrency"`
	Runs        int      `json:"runs"`
	Failed      int      `json:"failed"`
	Failures    []string `json:"failures,omitempty"` // the first few
	P50         float64  `json:"p50_ms"`
	P99         float64  `json:"p99_ms"`
	WallPerRun  float64  `json:"wall_per_run_ms"` // median of the rounds
	PerSecond   float64  `json:"per_second"`
	CPU         float64  `json:"cpu_ms"` // user + system, children's too: median of the rounds' means
	PeakKiB     int64    `json:"peak_kib"`
	// OfBasis is p50 divided by that of Basis, OfOurs by that of aws-cni; CPUOfBasis the same with the CPU time; ToAlone
	// is the wall time per run divided by that at concurrency 1 (above 1: throughput falls).
	OfBasis    stats.Ratio `json:"of_basis"`
	CPUOfBasis stats.Ratio `json:"cpu_of_basis"`
	OfOurs     stats.Ratio `json:"of_aws_cni"`
	ToAlone    stats.Ratio `json:"to_concurrency_1"`
}

// Point is the ADD of one pod among those before it, divided by the ADD of a first pod. Times are in milliseconds.
type Point struct {
	Contender string      `json:"contender"`
	Pod       int         `json:"pod"`
	Here      float64     `json:"here_ms"`
	First     float64     `json:"first_ms"`
	ToFirst   stats.Ratio `json:"to_first"`
}

// Reliability is the count of failures.
type Reliability struct {
	Contender   string   `json:"contender"`
	Runs        int      `json:"runs"`
	Pods        int      `json:"pods"`
	Concurrency int      `json:"concurrency"`
	FailedADDs  int      `json:"failed_adds"`
	FailedDELs  int      `json:"failed_dels"`
	LinksLeft   int      `json:"links_left"`
	Seconds     float64  `json:"seconds"`
	Failures    []string `json:"failures,omitempty"` // the first few
}

// mostFailures is how many failures are told word for word.
const mostFailures = 5

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func few(failures []string) []string { return failures[:min(len(failures), mostFailures)] }

// NewCells works out what is told of the cells, with the sums added where both of their sides are there.
func NewCells(measured []*series.Cell) []Cell {
	find := func(name, verb string, concurrency int) *series.Cell {
		for _, c := range measured {
			if c.Contender == name && c.Verb == verb && c.Concurrency == concurrency {
				return c
			}
		}
		return nil
	}
	var all []*series.Cell
	for _, c := range measured {
		all = append(all, c)
		if c.Contender != contender.OneCall {
			continue
		}
		if bare := find(contender.Bare, c.Verb, c.Concurrency); bare != nil {
			all = append(all, sum(Basis, c, bare, bare.Medians), sum(StrictBasis, c, bare, bare.Loops))
		}
	}
	measured = all
	var out []Cell
	for _, c := range all {
		t := Cell{
			Contender: c.Contender, Verb: c.Verb, Concurrency: c.Concurrency, Runs: len(c.Walls),
			Failed: len(c.Failures), Failures: few(c.Failures), PeakKiB: c.PeakKiB,
			P50: milliseconds(stats.Quantile(c.Walls, 0.5)), P99: milliseconds(stats.Quantile(c.Walls, 0.99)),
			WallPerRun: milliseconds(stats.Quantile(c.Phases, 0.5)), CPU: milliseconds(stats.Quantile(c.CPUs, 0.5)),
		}
		if len(c.Walls) == 0 { // a sum
			t.P50 = milliseconds(stats.Quantile(c.Medians, 0.5))
		}
		if t.WallPerRun > 0 {
			t.PerSecond = 1000 / t.WallPerRun
		}
		if b := find(Basis, c.Verb, c.Concurrency); b != nil {
			t.OfBasis, t.CPUOfBasis = stats.Ratios(c.Medians, b.Medians), stats.Ratios(c.CPUs, b.CPUs)
		}
		if b := find(contender.Ours, c.Verb, c.Concurrency); b != nil {
			t.OfOurs = stats.Ratios(c.Medians, b.Medians)
		}
		if b := find(c.Contender, c.Verb, 1); b != nil {
			t.ToAlone = stats.Ratios(c.Phases, b.Phases)
		}
		out = append(out, t)
	}
	return out
}

// sum adds two contenders round by round: the call's medians to those given, and their CPU.
func sum(name string, call, bare *series.Cell, medians []time.Duration) *series.Cell {
	s := &series.Cell{Contender: name, Verb: call.Verb, Concurrency: call.Concurrency, Medians: add(call.Medians, medians)}
	if name == Basis {
		s.CPUs = add(call.CPUs, bare.CPUs)
	}
	return s
}

// add adds round by round; a round that lacks either side stays 0, and counts in no ratio.
func add(a, b []time.Duration) []time.Duration {
	out := make([]time.Duration, min(len(a), len(b)))
	for i := range out {
		if a[i] > 0 && b[i] > 0 {
			out[i] = a[i] + b[i]
		}
	}
	return out
}

// NewPoints works out what is told of the growth.
func NewPoints(measured []*series.Point) []Point {
	var out []Point
	for _, p := range measured {
		out = append(out, Point{
			Contender: p.Contender, Pod: p.Pod, ToFirst: stats.Ratios(p.Here, p.First),
			Here: milliseconds(stats.Quantile(p.Here, 0.5)), First: milliseconds(stats.Quantile(p.First, 0.5)),
		})
	}
	return out
}

// NewReliability works out what is told of the failures.
func NewReliability(r series.Reliability) *Reliability {
	return &Reliability{
		Contender: r.Contender, Runs: r.Runs, Pods: r.Pods, Concurrency: r.Concurrency,
		FailedADDs: r.FailedADDs, FailedDELs: r.FailedDELs, LinksLeft: r.LinksLeft,
		Seconds: r.Wall.Seconds(), Failures: few(r.Failures),
	}
}

// WriteJSON writes the document.
func (d Document) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	if err := e.Encode(d); err != nil {
		return fmt.Errorf("write the results as JSON: %w", err)
	}
	return nil
}
