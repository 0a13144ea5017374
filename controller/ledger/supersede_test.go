package ledger

import (
	"testing"
	"time"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

func TestOnlyAnUnfinishedAttemptIsSupersededAndOnlyByOtherGroups(t *testing.T) {
	for _, state := range []v1.SlotState{v1.Creating, v1.Bound, v1.Releasing, v1.Cooling, v1.Deleting, v1.Occupied, v1.Free} {
		for _, tt := range []struct {
			groups []string
			other  bool
		}{{[]string{"a", "b"}, false}, {[]string{"b", "a"}, false}, {[]string{"a"}, true}, {[]string{"a", "b", "c"}, true}, {[]string{"a", "c"}, true}} {
			s := v1.BranchLedgerSpec{Slots: []v1.Slot{{VLANID: 7, State: state, PodUID: "p", ENIID: "eni-1", Claim: "c", SecurityGroups: []string{"a", "b"}}}}
			want := tt.other && state == v1.Creating
			if got := Supersede(&s, "p", tt.groups, time.Unix(1, 0)); got != want || want != (s.Slots[0].State == v1.Deleting && state != v1.Deleting) || s.Slots[0].Claim != "c" {
				t.Errorf("%s, %v: %v: %+v", state, tt.groups, got, s.Slots[0])
			}
		}
	}
}
