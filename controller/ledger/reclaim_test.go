package ledger

import (
	"testing"
	"time"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// A node that doesn't confirm keeps its slots, unless the instance is gone or all the rest agrees; and never before
// twice the cool-down.
func TestReclaimNeedsAllTheEvidenceOrTheInstancesEnd(t *testing.T) {
	start := time.Unix(1000, 0)
	for bits := range 16 {
		e := Evidence{InstanceGone: bits&8 != 0, PodEnded: bits&4 != 0, AgentGone: bits&2 != 0, Unwired: bits&1 != 0}
		for _, after := range []time.Duration{0, rest, 2*rest - time.Millisecond, 2 * rest, 10 * rest} {
			for _, state := range []v1.SlotState{v1.Creating, v1.Bound, v1.Releasing, v1.Cooling, v1.Deleting, v1.Occupied, v1.Free} {
				s := v1.BranchLedgerSpec{Capacity: 9, Slots: []v1.Slot{{VLANID: 7, PodUID: "p", ENIID: "eni-1"}}}
				enter(&s.Slots[0], state, start)
				want := state == v1.Releasing && after >= 2*rest && bits >= 7
				got := Reclaim(&s, 7, e, start.Add(after), rest)
				if got != want || want != (s.Slots[0].State == v1.Deleting && state != v1.Deleting) || s.Slots[0].ENIID != "eni-1" {
					t.Errorf("%+v, %s after %v: reclaimed %v, want %v: %+v", e, state, after, got, want, s.Slots[0])
				}
			}
		}
	}
	if Reclaim(&v1.BranchLedgerSpec{}, 7, Evidence{InstanceGone: true}, start, rest) {
		t.Error("a VLAN id that was never given was reclaimed")
	}
}
