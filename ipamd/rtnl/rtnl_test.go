package rtnl

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestP41AnInterruptedDumpIsRepeatedNotBelieved(t *testing.T) {
	other := errors.New("no buffer space")
	for interrupted, want := range map[int]error{0: nil, 1: nil, tries - 1: nil, tries: netlink.ErrDumpInterrupted} {
		calls := 0
		all, err := Dump(func() ([]int, error) {
			if calls++; calls <= interrupted {
				return []int{1}, fmt.Errorf("list: %w", netlink.ErrDumpInterrupted)
			}
			return []int{1, 2}, nil
		})
		if !errors.Is(err, want) || err == nil && !slices.Equal(all, []int{1, 2}) || err != nil && all != nil {
			t.Errorf("interrupted %d times: %v, %v after %d calls", interrupted, all, err, calls)
		}
	}
	calls := 0
	if _, err := Dump(func() ([]int, error) { calls++; return nil, other }); err != other || calls != 1 {
		t.Errorf("%v after %d calls", err, calls)
	}
}
