// Package stats holds the few numbers that the benchmark prints: quantiles of durations, and ratios of rounds with
// their spread. It measures nothing.
package stats

import (
	"math"
	"slices"
	"time"
)

// Quantile is the q-quantile (0 to 1) of the samples by the nearest rank: always a value that was measured. 0 for none.
func Quantile(samples []time.Duration, q float64) time.Duration {
	if len(samples) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(q * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the middle of the values, the mean of the two in the middle for an even count. NaN for none.
func Median(values []float64) float64 {
	if len(values) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// Ratio is a ratio that was taken once per round: its median, and the lowest and highest round.
type Ratio struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
	Rounds int     `json:"rounds"`
}

// Ratios divides round by round, so that what disturbed a round disturbs both sides of its ratio. Rounds that lack
// either side, or divide by zero, don't count. Zero for none.
func Ratios(of, basis []time.Duration) Ratio {
	var values []float64
	for i := range min(len(of), len(basis)) {
		if of[i] > 0 && basis[i] > 0 {
			values = append(values, float64(of[i])/float64(basis[i]))
		}
	}
	if len(values) == 0 {
		return Ratio{}
	}
	return Ratio{Median: Median(values), Low: slices.Min(values), High: slices.Max(values), Rounds: len(values)}
}
