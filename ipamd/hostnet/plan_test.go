package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func fresh() Actual {
	return Actual{Rules: []Rule{{Priority: 0, Table: LocalTable}, {Priority: 32766, Table: MainTable}, {Priority: 32767, Table: 253}}}
}

func drawDesired(t *rapid.T) Desired {
	d := Desired{LocalBehindPods: rapid.Bool().Draw(t, "strict")}
	for i := range rapid.IntRange(0, 3).Draw(t, "enis") {
		if rapid.Bool().Draw(t, "there") {
			d.ENIs = append(d.ENIs, ENI{Device: i, LinkIndex: rapid.IntRange(2, 4).Draw(t, "link"),
				Primary: netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)}), Gateway: netip.MustParseAddr("10.0.0.1")})
		}
	}
	return d
}

func TestPlanConvergesAndTheLocalRuleIsNeverMissing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		foreign := Rule{Priority: 100, From: netip.MustParsePrefix("10.9.0.0/16"), Table: 77}
		a := fresh()
		a.Rules = append(a.Rules, foreign)
		for range 4 {
			d := drawDesired(t)
			ops := Plan(d, a)
			for i := range ops {
				mid := a.Apply(ops[:i+1]) // the agent may be killed after each
				if !slices.ContainsFunc(mid.Rules, func(r Rule) bool { return r.Table == LocalTable }) {
					t.Fatalf("no local rule after %v", ops[:i+1])
				}
			}
			cut := rapid.IntRange(0, len(ops)).Draw(t, "killed after")
			a = a.Apply(ops[:cut])
			a = a.Apply(Plan(d, a))
			if left := Plan(d, a); len(left) > 0 {
				t.Fatalf("still to do: %v", left)
			}
			if !slices.ContainsFunc(a.Rules, foreign.same) || !slices.ContainsFunc(a.Rules, Rule{Priority: 32766, Table: MainTable}.same) {
				t.Fatal("somebody else's rule was taken away")
			}
			want := LocalPriority
			if d.LocalBehindPods {
				want = LocalPriorityStrict
			}
			for _, r := range a.Rules {
				if r.Table == LocalTable && r.Priority != want {
					t.Fatalf("local rule at %d, want only %d", r.Priority, want)
				}
			}
		}
	})
}
