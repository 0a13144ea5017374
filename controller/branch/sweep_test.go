package branch

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
)

func TestOnlyWhatIsOldAndInNoLedgerLeaks(t *testing.T) {
	now, age := since, 2*time.Minute
	old := now.Add(-age)
	ledgers := []ledgerv1.BranchLedger{{Spec: ledgerv1.BranchLedgerSpec{InstanceID: "i-1", TrunkENIID: "eni-trunk", Slots: []ledgerv1.Slot{
		{VLANID: 1, State: ledgerv1.Bound, ENIID: "eni-bound", Claim: "c1"}, {VLANID: 2, State: ledgerv1.Creating, Claim: "c2"}, {VLANID: 3, State: ledgerv1.Occupied, ENIID: "eni-foreign"}, {VLANID: 4, State: ledgerv1.Free}}}}}
	branch := func(id, claim string, at time.Time) cloud.ENI {
		return cloud.ENI{ID: id, Claim: claim, CreatedAt: at, Description: cloud.BranchDescription, InstanceID: "i-1"}
	}
	for _, tt := range []struct {
		what string
		e    cloud.ENI
		want bool
	}{
		{"branch of nobody", branch("eni-x", "cx", old), true},
		{"without a claim", branch("eni-x", "", old), false},
		{"too young", branch("eni-x", "cx", old.Add(time.Second)), false},
		{"without a date", branch("eni-x", "cx", time.Time{}), false},
		{"in a slot", branch("eni-bound", "c1", old), false},
		{"an intent that a crash left", branch("eni-x", "c2", old), false},
		{"on an occupied VLAN id", branch("eni-foreign", "cx", old), false},
		{"somebody else's description", cloud.ENI{ID: "eni-x", Claim: "cx", CreatedAt: old, Description: "mine"}, false},
		{"a trunk of the ledger", cloud.ENI{ID: "eni-trunk", Claim: "cx", CreatedAt: old, Description: cloud.TrunkDescription}, false},
		{"a second trunk of a known instance", cloud.ENI{ID: "eni-x", Claim: "cx", CreatedAt: old, Description: cloud.TrunkDescription, InstanceID: "i-1"}, false},
		{"an attached trunk of an unknown instance", cloud.ENI{ID: "eni-x", Claim: "cx", CreatedAt: old, Description: cloud.TrunkDescription, InstanceID: "i-2", InUse: true}, false},
		{"a trunk that was never attached", cloud.ENI{ID: "eni-x", Claim: "cx", CreatedAt: old, Description: cloud.TrunkDescription, InstanceID: "i-2"}, true},
	} {
		if got := leaked([]cloud.ENI{tt.e}, ledgers, now, age); (len(got) == 1) != tt.want {
			t.Errorf("%s: %v", tt.what, got)
		}
	}
}

func TestNothingThatALedgerNamesIsSweptWhateverItsTagsSay(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.SampledFrom([]string{"", "eni-1", "eni-2", "eni-3", "eni-4"})
		claim := rapid.SampledFrom([]string{"", "c1", "c2", "c3"})
		made := rapid.SliceOf(rapid.Custom(func(t *rapid.T) cloud.ENI {
			return cloud.ENI{ID: id.Draw(t, "id"), Claim: claim.Draw(t, "claim"), InUse: rapid.Bool().Draw(t, "use"), InstanceID: rapid.SampledFrom([]string{"", "i-1", "i-2"}).Draw(t, "instance"),
				CreatedAt:   since.Add(time.Duration(rapid.IntRange(-300, 300).Draw(t, "age")) * time.Second),
				Description: rapid.SampledFrom([]string{"", cloud.TrunkDescription, cloud.BranchDescription}).Draw(t, "description")}
		})).Draw(t, "made")
		s := ledgerv1.BranchLedgerSpec{InstanceID: "i-1", TrunkENIID: id.Draw(t, "trunk")}
		for n := range rapid.IntRange(0, 4).Draw(t, "slots") {
			s.Slots = append(s.Slots, ledgerv1.Slot{VLANID: int32(n + 1), ENIID: id.Draw(t, "slot"), Claim: claim.Draw(t, "claim")})
		}
		for _, e := range leaked(made, []ledgerv1.BranchLedger{{Spec: s}}, since, time.Minute) {
			known := e.ID == s.TrunkENIID
			for _, slot := range s.Slots {
				known = known || slot.ENIID == e.ID || slot.Claim != "" && slot.Claim == e.Claim
			}
			if known || since.Sub(e.CreatedAt) < time.Minute || e.Description == "" {
				t.Fatalf("%+v would be deleted; ledger %+v", e, s)
			}
		}
	})
}
