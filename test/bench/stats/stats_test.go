package stats

import (
	"math"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func ms(values ...int) []time.Duration {
	var out []time.Duration
	for _, v := range values {
		out = append(out, time.Duration(v)*time.Millisecond)
	}
	return out
}

func TestQuantileIsTheNearestRank(t *testing.T) {
	hundred := make([]time.Duration, 100)
	for i := range hundred {
		hundred[i] = time.Duration(100-i) * time.Millisecond // not sorted
	}
	for _, tc := range []struct {
		samples []time.Duration
		q       float64
		want    time.Duration
	}{
		{nil, 0.5, 0},
		{ms(7), 0, 7 * time.Millisecond},
		{ms(7), 0.99, 7 * time.Millisecond},
		{ms(3, 1, 2), 0.5, 2 * time.Millisecond},
		{ms(4, 1, 3, 2), 0.5, 2 * time.Millisecond},
		{hundred, 0.5, 50 * time.Millisecond},
		{hundred, 0.99, 99 * time.Millisecond},
		{hundred, 1, 100 * time.Millisecond},
	} {
		if got := Quantile(tc.samples, tc.q); got != tc.want {
			t.Errorf("quantile %v of %d samples: %v, want %v", tc.q, len(tc.samples), got, tc.want)
		}
	}
}

func TestQuantilesAreMeasuredValuesAndGrow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		samples := rapid.SliceOfN(rapid.Map(rapid.Int64Range(1, 1e9), func(n int64) time.Duration { return time.Duration(n) }), 1, 50).Draw(t, "samples")
		before := slices.Clone(samples)
		low, high := Quantile(samples, 0.5), Quantile(samples, 0.99)
		if !slices.Contains(samples, low) || !slices.Contains(samples, high) || low > high {
			t.Fatalf("p50 %v, p99 %v of %v", low, high, samples)
		}
		if !slices.Equal(before, samples) {
			t.Fatal("the samples were reordered")
		}
	})
}

func TestMedian(t *testing.T) {
	if m := Median([]float64{3, 1, 2}); m != 2 {
		t.Errorf("of three: %v", m)
	}
	if m := Median([]float64{4, 1, 2, 3}); m != 2.5 {
		t.Errorf("of four: %v", m)
	}
	if m := Median(nil); !math.IsNaN(m) {
		t.Errorf("of none: %v", m)
	}
}

func TestRatiosAreTakenRoundByRound(t *testing.T) {
	// The machine was ten times slower in the last round: no ratio shows it.
	got := Ratios(ms(20, 22, 200), ms(10, 10, 100))
	if want := (Ratio{Median: 2, Low: 2, High: 2.2, Rounds: 3}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := Ratios(ms(20, 0, 5), ms(10, 10)); got != (Ratio{Median: 2, Low: 2, High: 2, Rounds: 1}) {
		t.Errorf("a missing side counted: %+v", got)
	}
	if got := Ratios(ms(1), ms(0)); got != (Ratio{}) {
		t.Errorf("divided by zero: %+v", got)
	}
}
