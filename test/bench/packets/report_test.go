package main

import (
	"bytes"
	"math"
	"strings"
	"testing"
)

func TestCostIsAboveOneForWhatIsWorse(t *testing.T) {
	for measure, slower := range map[string][]float64{roundTrip: {20, 22, 24}, toPod: {5, 5.5, 6}} {
		base := []float64{10, 11, 12}
		if got := cost(measure, slower, base); math.Abs(got-2) > 1e-9 {
			t.Errorf("%s: %v", measure, got)
		}
	}
}

func TestTheVerdictIsAboutOurLastPod(t *testing.T) {
	var worlds []*world
	for _, l := range layouts {
		for _, branch := range branchCounts {
			for i, regular := range regularCounts {
				v := 10.0
				if l.name == twoRules || i == 1 {
					v = 30 // dear, and not what is asked about
				}
				worlds = append(worlds, &world{layout: l, regular: regular, branch: branch, samples: map[string][]float64{roundTrip: {v}}})
			}
		}
	}
	r := summarize(worlds)
	if !r.Holds || r.Worst != 1 {
		t.Errorf("%+v", r.Worst)
	}
	worlds[len(regularCounts)*len(branchCounts)+2].samples[roundTrip][0] = 11.5
	if r = summarize(worlds); r.Holds {
		t.Errorf("%+v", r.Worst)
	}
	var out bytes.Buffer
	r.print(&out)
	if !strings.Contains(out.String(), "11.5 (1.15)") || !strings.Contains(out.String(), "ABOVE") {
		t.Error(out.String())
	}
}
