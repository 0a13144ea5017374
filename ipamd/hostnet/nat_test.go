package hostnet

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/nftables/expr"
	"pgregory.net/rapid"
)

func natDesired(n NAT) Desired {
	return Desired{VethPrefix: "eni", NAT: n, ENIs: []ENI{{Device: 0, LinkIndex: 2, Primary: addressOf(false, 0, 0).Addr(), Gateway: addressOf(false, 9, 1).Addr()}}}
}

func stockNAT() NAT {
	return NAT{Source: true, NodePort: true, ConnMark: 0x80, VPC: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}
}

func TestNothingIsChangedWhileTheVPCOrThePrimaryENIIsNotKnown(t *testing.T) {
	d := natDesired(stockNAT())
	a := fresh().apply(d)
	if len(a.Tables.Digests) != 1 {
		t.Fatalf("%v", a.Tables)
	}
	noVPC, noENI := d, d
	noVPC.NAT.VPC, noENI.ENIs = nil, nil
	for name, d := range map[string]Desired{"the VPC's prefixes": noVPC, "the primary ENI": noENI} {
		if ops := Plan(d, a); slices.ContainsFunc(ops, func(o Op) bool { return o.Table != nil || o.Rule != nil }) {
			t.Errorf("%s unknown, and yet: %v", name, ops)
		}
		if got := fresh().apply(d).Tables.Digests; len(got) > 0 {
			t.Errorf("%s unknown: %v", name, got)
		}
	}
	noVPC.NAT.Source = false // NodePort needs no prefixes
	if got := fresh().apply(noVPC).Tables.Digests; len(got) != 1 {
		t.Errorf("NodePort alone: %v", got)
	}
}

func TestEachSettingOfNATMakesAnotherTable(t *testing.T) {
	seen := map[string]string{}
	for name, change := range map[string]func(*Desired){
		"stock": func(*Desired) {}, "external": func(d *Desired) { d.NAT.Source = false }, "no NodePort": func(d *Desired) { d.NAT.NodePort = false },
		"another mark": func(d *Desired) { d.NAT.ConnMark = 0x100 }, "hashed": func(d *Desired) { d.NAT.Ports = PortsHashed },
		"kept": func(d *Desired) { d.NAT.Ports = PortsKept }, "another prefix of pods": func(d *Desired) { d.VethPrefix = "pod" },
		"a second CIDR": func(d *Desired) { d.NAT.VPC = append(d.NAT.VPC, netip.MustParsePrefix("100.64.0.0/10")) },
		"excluded":      func(d *Desired) { d.NAT.Excluded = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} },
		"another link":  func(d *Desired) { d.ENIs[0].LinkIndex = 3 }, "another address": func(d *Desired) { d.ENIs[0].Primary = addressOf(false, 0, 1).Addr() },
	} {
		d := natDesired(stockNAT())
		change(&d)
		table, wanted, unknown := d.natTable()
		if !wanted || unknown {
			t.Fatalf("%s: wanted %t, unknown %t", name, wanted, unknown)
		}
		if other, again := seen[table.digest()]; again {
			t.Errorf("%s is like %s", name, other)
		}
		seen[table.digest()] = name
	}
}

func TestPrefixesAreWrittenOnceInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		list := rapid.SliceOf(rapid.SampledFrom(someCIDRs)).Draw(t, "prefixes")
		got := sorted(list)
		if again := sorted(rapid.Permutation(list).Draw(t, "order")); !slices.Equal(got, again) {
			t.Fatalf("%v and %v", got, again)
		}
		for i, p := range got {
			for _, o := range got[i+1:] {
				if p.Overlaps(o) {
					t.Fatalf("%s and %s", p, o)
				}
			}
		}
		for _, p := range list {
			if !slices.ContainsFunc(got, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) }) {
				t.Fatalf("%s is not in %v", p, got)
			}
		}
	})
}

// A connection's later packets cost the same however many prefixes there are.
func TestPrefixesAreLookedAtOnlyForTheFirstPacket(t *testing.T) {
	few, many := stockNAT(), stockNAT()
	for i := range 40 {
		many.Excluded = append(many.Excluded, netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 0, byte(i), 0}), 24))
	}
	hooked := func(n NAT) (rules int) {
		table, _, _ := natDesired(n).natTable()
		for _, c := range table.chains {
			if c.hook != nil {
				rules += len(c.rules)
			}
			for _, r := range c.rules {
				isJump := func(e expr.Any) bool { v, ok := e.(*expr.Verdict); return ok && v.Kind == expr.VerdictJump }
				isState := func(e expr.Any) bool { ct, ok := e.(*expr.Ct); return ok && ct.Key == expr.CtKeySTATE }
				if slices.ContainsFunc(r, isJump) && !slices.ContainsFunc(r, isState) {
					t.Errorf("chain %s goes through the prefixes with each packet", c.name)
				}
			}
		}
		return rules
	}
	if a, b := hooked(few), hooked(many); a != b {
		t.Errorf("%d rules with one prefix, %d with 41", a, b)
	}
}

func TestExternalServicesAreReachedByTheMainTable(t *testing.T) {
	d := natDesired(NAT{})
	d.External = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("192.0.2.128/25"), netip.MustParsePrefix("fd00::/64")}
	want := Rule{Priority: ExternalPriority, To: netip.MustParsePrefix("192.0.2.0/24"), Table: MainTable}
	a := fresh().apply(d)
	if n := len(slices.DeleteFunc(slices.Clone(a.Rules), func(r Rule) bool { return r.Priority != ExternalPriority })); n != 1 || !slices.ContainsFunc(a.Rules, want.same) {
		t.Errorf("%v", a.Rules)
	}
	d.External = nil
	if a = a.apply(d); slices.ContainsFunc(a.Rules, want.same) {
		t.Error("it is left behind")
	}
}
