package series

import (
	"slices"
	"testing"
)

func TestGrowthIsMeasuredAtTheFirstEachHundredthAndTheLastPod(t *testing.T) {
	for _, tc := range []struct {
		most int
		want []int
	}{
		{1, []int{1}}, {2, []int{1, 2}}, {100, []int{1, 100}}, {250, []int{1, 100, 200, 250}}, {300, []int{1, 100, 200, 300}},
	} {
		if got := milestones(tc.most, 100); !slices.Equal(got, tc.want) {
			t.Errorf("up to %d: %v, want %v", tc.most, got, tc.want)
		}
	}
}
