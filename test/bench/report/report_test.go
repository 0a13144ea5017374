package report

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/series"
	"github.com/branchline-cni/branchline/test/bench/stats"
)

const ms = time.Millisecond

func cell(name, verb string, concurrency int, medians ...time.Duration) *series.Cell {
	return &series.Cell{Contender: name, Verb: verb, Concurrency: concurrency, Walls: medians, CPUs: medians, Medians: medians, Phases: medians}
}

func measured() []*series.Cell {
	bare := cell(contender.Bare, series.ADD, 1, 2*ms, 2*ms)
	bare.Loops = []time.Duration{1 * ms, 1 * ms}
	return []*series.Cell{
		cell(contender.Ours, series.ADD, 1, 9*ms, 12*ms), bare, cell(contender.OneCall, series.ADD, 1, 4*ms, 4*ms),
		cell(contender.Ours, series.ADD, 8, 90*ms, 120*ms),
	}
}

func find(t *testing.T, cells []Cell, name string, concurrency int) Cell {
	t.Helper()
	for _, c := range cells {
		if c.Contender == name && c.Concurrency == concurrency {
			return c
		}
	}
	t.Fatalf("no cell of %s at %d", name, concurrency)
	return Cell{}
}

func TestTheBudgetsBasisIsTheSumRoundByRound(t *testing.T) {
	cells := NewCells(measured())
	if got, want := find(t, cells, contender.Ours, 1).OfBasis, (stats.Ratio{Median: 1.75, Low: 1.5, High: 2, Rounds: 2}); got != want {
		t.Errorf("ours of the basis: %+v, want %+v", got, want)
	}
	if got := find(t, cells, Basis, 1); got.P50 != 6 || got.CPU != 6 {
		t.Errorf("the basis: %+v", got)
	}
	if got := find(t, cells, StrictBasis, 1); got.P50 != 5 {
		t.Errorf("the stricter basis: %+v", got)
	}
	if got := find(t, cells, contender.Ours, 8); got.OfBasis.Rounds != 0 || got.ToAlone.Median != 10 {
		t.Errorf("at 8: %+v", got)
	}
}

func TestVerdictsNameWhatIsOverItsBudget(t *testing.T) {
	p := Place{
		Cells: NewCells(measured()),
		Growth: []Point{
			{Contender: contender.Ours, Pod: 1, ToFirst: stats.Ratio{Median: 5, Rounds: 1}},
			{Contender: contender.Ours, Pod: 700, ToFirst: stats.Ratio{Median: 1.05, Rounds: 1}},
			{Contender: contender.PTP, Pod: 700, ToFirst: stats.Ratio{Median: 9, Rounds: 1}},
		},
		Reliability: &Reliability{Runs: 2, Pods: 3, FailedADDs: 1},
	}
	got := strings.Join(p.Verdicts(), "\n")
	for _, want := range []string{
		"ADD at 1 at a time takes 1.75 (1.50-2.00) of (bare loop + one call), at most 2.0: within the budget", "2.10 of (loop alone + one call)",
		"an ADD at 8 at a time takes 10.00", "over the budget",
		"ADD of pod 700 takes 1.05", "1 of 6 ADDs failed: over the budget",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
}

func TestFailuresAreCountedAndAFewAreTold(t *testing.T) {
	c := cell(contender.Ours, series.ADD, 1, ms)
	for range 20 {
		c.Failures = append(c.Failures, "no route")
	}
	r := NewReliability(series.Reliability{Runs: 1, Pods: 2, FailedADDs: 3, FailedDELs: 4, Failures: c.Failures})
	d := Document{Places: []Place{{Cells: NewCells([]*series.Cell{c}), Reliability: r}}}
	if d.Failed() != 27 || len(d.Places[0].Cells[0].Failures) != mostFailures || len(r.Failures) != mostFailures {
		t.Errorf("%d failed: %+v", d.Failed(), d)
	}
}

func TestTheDocumentComesBackFromJSON(t *testing.T) {
	// The part in the virtual machine hands its results over in this form.
	d := Document{Places: []Place{{
		Name: "vm", Rounds: 2, Cells: NewCells(measured()),
		Growth:      NewPoints([]*series.Point{{Contender: contender.Ours, Pod: 100, Here: []time.Duration{3 * ms}, First: []time.Duration{2 * ms}}}),
		Reliability: &Reliability{Runs: 1},
	}}}
	var b strings.Builder
	if err := d.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Document
	if err := json.Unmarshal([]byte(b.String()), &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(d, back); diff != "" {
		t.Error(diff)
	}
}

func TestTheTablesNameEveryContenderAndNeverPrintNaN(t *testing.T) {
	empty := &series.Cell{Contender: contender.VLAN, Verb: series.DEL, Concurrency: 32, Failures: []string{"no 802.1Q"}}
	d := Document{Places: []Place{{Name: "native", Cells: NewCells(append(measured(), empty))}}}
	var b strings.Builder
	if err := d.Print(&b); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{contender.Ours, contender.VLAN, Basis, "failed: no 802.1Q", "1.75 (1.50-2.00)"} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no %q in\n%s", want, b.String())
		}
	}
	if strings.Contains(b.String(), "NaN") || strings.Contains(b.String(), "Inf") {
		t.Errorf("not a number in\n%s", b.String())
	}
}
