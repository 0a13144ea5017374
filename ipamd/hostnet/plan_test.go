package hostnet

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/aws"
)

// fresh is a host that nobody has changed, but for what others have there.
func fresh() Actual {
	return Actual{Rules: []Rule{
		{Priority: 0, Table: LocalTable}, {Priority: 32766, Table: MainTable}, {Priority: 32767, Table: 253},
		{Priority: 100, From: netip.MustParsePrefix("10.9.0.0/16"), Table: 77},
		{Priority: StrictPriority, Iif: "vlan.eth.7", Table: 107},
		{Priority: MarkPriority, From: netip.MustParsePrefix("10.0.0.77/32"), Table: 2}, // an older version's, or upstream's
		{Priority: 20, From: netip.MustParsePrefix("10.9.0.0/16"), Table: LocalTable},
	}}
}

// addressOf is the n-th address of a device's ENI.
func addressOf(ipv6 bool, device, n int) netip.Prefix {
	a := netip.AddrFrom4([4]byte{10, 0, byte(device), byte(10 + n)})
	if ipv6 {
		a = netip.AddrFrom16([16]byte{0xfd, 14: byte(device), 15: byte(10 + n)})
	}
	return netip.PrefixFrom(a, a.BitLen())
}

// someSlots are of the primary ENI, of others on its card and of some on further ones.
var someSlots = []Slot{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {3, 15}}

// someCIDRs contain each other in part.
var someCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16"), netip.MustParsePrefix("10.0.7.0/24"), netip.MustParsePrefix("100.64.0.0/10"),
	netip.MustParsePrefix("198.51.100.7/32"), netip.MustParsePrefix("fd00::/64"), netip.MustParsePrefix("0.0.0.0/0")}

func drawDesired(t *rapid.T, ipv6 bool) Desired {
	d := Desired{
		IPv6: ipv6, LocalBehindPods: rapid.Bool().Draw(t, "strict"), KubeletLocal: rapid.Bool().Draw(t, "kubelet"),
		VethPrefix: rapid.SampledFrom([]string{"eni", "pod"}).Draw(t, "veth prefix"),
		InUse:      rapid.SliceOfNDistinct(rapid.SampledFrom(someSlots), 0, 2, rapid.ID[Slot]).Draw(t, "in use"),
	}
	if rapid.Bool().Draw(t, "node-local") {
		d.NodeLocal = []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32"), netip.MustParsePrefix("169.254.170.23/32"), netip.MustParsePrefix("fd00:ec2::23/128")}
	}
	if rapid.Bool().Draw(t, "NAT") {
		d.NAT = NAT{Source: rapid.Bool().Draw(t, "source NAT"), NodePort: rapid.Bool().Draw(t, "NodePort"), ConnMark: rapid.SampledFrom([]uint32{0x80, 0x100}).Draw(t, "mark"),
			Ports: rapid.SampledFrom([]Ports{PortsRandom, PortsHashed, PortsKept}).Draw(t, "ports"),
			VPC:   rapid.SliceOfN(rapid.SampledFrom(someCIDRs), 0, 2).Draw(t, "VPC"), Excluded: rapid.SliceOfN(rapid.SampledFrom(someCIDRs), 0, 3).Draw(t, "excluded")}
		d.External = rapid.SliceOfN(rapid.SampledFrom(someCIDRs), 0, 3).Draw(t, "external")
	}
	if rapid.Bool().Draw(t, "egress") {
		d.Egress = netip.MustParsePrefix("fd00::ac:0/118")
		if ipv6 {
			d.Egress = netip.MustParsePrefix("169.254.172.0/22")
		}
	}
	for i, slot := range someSlots {
		if rapid.Bool().Draw(t, fmt.Sprintf("eni %d", i)) {
			e := ENI{Card: slot.Card, Device: slot.Device, LinkIndex: rapid.IntRange(2, 4).Draw(t, "link"), Primary: addressOf(ipv6, i, 0).Addr(), Gateway: addressOf(ipv6, 9, 1).Addr()}
			for n := range rapid.IntRange(0, 3).Draw(t, "addresses") {
				e.Prefixes = append(e.Prefixes, addressOf(ipv6, i, 1+n))
			}
			d.ENIs = append(d.ENIs, e)
		}
	}
	return d
}

// wantSafe holds at every moment, whoever is killed.
func wantSafe(t *rapid.T, a Actual, did []Op) {
	t.Helper()
	if !slices.ContainsFunc(a.Rules, Rule.isLocal) {
		t.Fatalf("no local rule after %v", did)
	}
	for _, r := range a.Rules {
		if r.Goto != 0 && !slices.ContainsFunc(a.Rules, func(o Rule) bool { return o.Priority == r.Goto && o.isLocal() }) {
			t.Fatalf("%v leads to nothing after %v", r, did)
		}
	}
	for _, ipv6 := range []bool{false, true} {
		_, nat := a.Tables.Digests[TableKey{NATTable, ipv6}]
		byPrimary := markRule(Slot{})
		if nat && !slices.ContainsFunc(a.Rules, byPrimary.same) {
			t.Fatalf("NAT gives connections to the primary ENI and there is no %v after %v", byPrimary, did)
		}
	}
	for p, number := range a.Marks.Devices {
		slot := slotOf(number)
		rule := markRule(slot)
		if !slices.ContainsFunc(a.Rules, rule.same) {
			t.Fatalf("%s has the mark of %v and there is no %v after %v", p, slot, rule, did)
		}
		isDefault := func(r Route) bool { return r.Table == slot.Table() && r.Dst.Bits() == 0 }
		if number != 0 && !slices.ContainsFunc(a.Routes, isDefault) {
			t.Fatalf("%s has the mark of %v and its table is empty after %v", p, slot, did)
		}
	}
}

func TestPlanConvergesAndEveryMomentOfItIsSafe(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		a, foreign := fresh(), fresh().Rules[1:]
		a.Marks.Missing = rapid.IntRange(0, 4).Draw(t, "no nftables") == 0
		a.Tables.Missing = a.Marks.Missing
		for range 5 {
			d := drawDesired(t, ipv6)
			ops := Plan(d, a)
			for i := range ops {
				wantSafe(t, a.Apply(ops[:i+1]), ops[:i+1])
			}
			a = a.Apply(ops[:rapid.IntRange(0, len(ops)).Draw(t, "killed after")])
			switch rapid.IntRange(0, 5).Draw(t, "meanwhile") {
			case 0: // nft flush ruleset
				a.Marks, a.Tables = Marks{Missing: a.Marks.Missing}, Tables{Missing: a.Tables.Missing}
			case 1: // ip rule flush
				a.Rules = slices.DeleteFunc(slices.Clone(a.Rules), func(r Rule) bool { return r.Ours && !(r.isLocal() && r.Priority == 0) })
			}
			a = a.Apply(Plan(d, a))
			if left := Plan(d, a); len(left) > 0 {
				t.Fatalf("still to do: %v", left)
			}
			for _, f := range foreign {
				if !slices.ContainsFunc(a.Rules, f.same) {
					t.Fatalf("somebody else's %v was taken away", f)
				}
			}
			want := LocalPriority
			if d.LocalBehindPods {
				want = LocalPriorityStrict
			}
			for _, r := range a.Rules {
				if r.isLocal() && r.Priority != want {
					t.Fatalf("local rule at %d, want only %d", r.Priority, want)
				}
			}
			wantMarked(t, d, a)
			wantTables(t, d, a)
		}
	})
}

// wantTables: a table is there exactly if it is asked for and can be made, and as it is asked for.
func wantTables(t *rapid.T, d Desired, a Actual) {
	t.Helper()
	if a.Tables.Missing {
		return
	}
	want := map[TableKey]string{}
	nat, natWanted, unknown := d.natTable()
	if natWanted {
		want[nat.key()] = nat.digest()
	}
	if guard, wanted := d.guardTable(); wanted {
		want[guard.key()] = guard.digest()
	}
	got := maps.Clone(a.Tables.Digests)
	if unknown { // of before
		maps.DeleteFunc(got, func(k TableKey, _ string) bool { return k.Name == NATTable })
	}
	if !maps.Equal(got, want) {
		t.Fatalf("tables %v, want %v", got, want)
	}
}

// wantMarked: each address of an ENI that is there is in the map, exactly if there can be one.
func wantMarked(t *rapid.T, d Desired, a Actual) {
	t.Helper()
	for _, e := range d.ENIs {
		for _, p := range e.Prefixes {
			if number, ok := a.Marks.Devices[p]; !a.Marks.Missing && (!ok || slotOf(number) != e.Slot()) {
				t.Fatalf("%s of %v is not marked: %v", p, e.Slot(), a.Marks.Devices)
			}
		}
	}
}

func TestAnENIThatNoSourceShowsKeepsItsRoutesWhilePodsUseIt(t *testing.T) {
	for _, slot := range []Slot{{0, 2}, {2, 0}} {
		t.Run(fmt.Sprint(slot), func(t *testing.T) { keepsRoutes(t, slot) })
	}
}

func keepsRoutes(t *testing.T, slot Slot) {
	d := Desired{VethPrefix: "eni", InUse: []Slot{slot}, ENIs: []ENI{{Card: slot.Card, Device: slot.Device, LinkIndex: 5, Primary: addressOf(false, 2, 0).Addr(),
		Gateway: addressOf(false, 9, 1).Addr(), Prefixes: []netip.Prefix{addressOf(false, 2, 1)}}}}
	a := fresh().apply(d)
	d.ENIs = nil
	if ops := Plan(d, a); len(ops) > 0 {
		t.Errorf("the view is incomplete, and yet: %v", ops)
	}
	a.Marks = Marks{Devices: a.Marks.Devices} // somebody added a rule to the table: it is made anew
	if got := a.apply(d).Marks.Devices; !maps.Equal(got, map[netip.Prefix]int{addressOf(false, 2, 1): slot.number()}) {
		t.Errorf("after mending: %v", got)
	}
	d.InUse = nil
	if a = a.apply(d); len(a.Routes) > 0 || len(a.Marks.Devices) > 0 || slices.ContainsFunc(a.Rules, func(r Rule) bool { return r.Ours && r.Priority >= PrimaryPriority }) {
		t.Errorf("left behind: %+v", a)
	}
}

func (a Actual) apply(d Desired) Actual { return a.Apply(Plan(d, a)) }

func TestStrictNodesHaveTheRulesOfTheLayoutAndOthersDoNot(t *testing.T) {
	d := Desired{LocalBehindPods: true, KubeletLocal: true, VethPrefix: "eni",
		NodeLocal: []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32"), netip.MustParsePrefix("fd00:ec2::23/128")},
		ENIs:      []ENI{{Device: 0, LinkIndex: 2, Primary: addressOf(false, 0, 0).Addr(), Gateway: addressOf(false, 9, 1).Addr()}}}
	want := func(d Desired, texts ...string) {
		t.Helper()
		var got []string
		rules, _ := d.wanted()
		for _, r := range rules {
			got = append(got, r.String())
		}
		if !slices.Equal(got, texts) {
			t.Errorf("got  %q\nwant %q", got, texts)
		}
	}
	want(d, "rule 20: lookup 255", "rule 5: to 169.254.20.10/32 lookup 255", "rule 5: from 169.254.20.10/32 iif lo lookup 510",
		"rule 6: iif lo fwmark 0x400/0x400 lookup 510", "rule 6: fwmark 0x400/0x400 lookup 255",
		"rule 8: iif lo goto 20", "rule 8: fwmark 0x1000/0x1000 goto 20", "rule 512: lookup 511", "rule 1534: fwmark 0x1/0x17f lookup 254")
	d.IPv6 = true
	want(d, "rule 20: lookup 255", "rule 5: to fd00:ec2::23/128 lookup 255", "rule 5: from fd00:ec2::23/128 iif lo lookup 510",
		"rule 5: from fe80:ec2::1/128 ipproto 58 lookup 255",
		"rule 6: iif lo fwmark 0x400/0x400 lookup 510", "rule 6: fwmark 0x400/0x400 lookup 255",
		"rule 8: iif lo goto 20", "rule 8: fwmark 0x1000/0x1000 goto 20", "rule 512: lookup 511", "rule 1534: fwmark 0x1/0x17f lookup 254")
	d.IPv6, d.LocalBehindPods = false, false
	want(d, "rule 0: lookup 255", "rule 512: lookup 511", "rule 1534: fwmark 0x1/0x17f lookup 254")
}

func TestMarksKeepClearOfThoseOfOthers(t *testing.T) {
	const others = 0x80 | 0x2000 | 0xc000 | 0xffff0000
	ours := uint32(0)
	for _, m := range []uint32{ENIMask, RerouteMark, KubeletMark, SourceNATMark, NoBranchMark} {
		if m&(ours|others) != 0 {
			t.Errorf("%#x overlaps", m)
		}
		ours |= m
	}
}

// TestEachSlotThatAnInstanceTypeHasIsToldApartByItsMarkAndTable and those of card 0 are as they were in the first release.
func TestEachSlotThatAnInstanceTypeHasIsToldApartByItsMarkAndTable(t *testing.T) {
	for device := range maxDevices {
		if s := (Slot{0, device}); s.Mark() != uint32(device+1) || device > 0 && s.Table() != device+1 {
			t.Errorf("%v: mark %#x, table %d", s, s.Mark(), s.Table())
		}
	}
	marks, tables := map[uint32]Slot{}, map[int]Slot{}
	for card := range maxCards + 1 {
		for device := range maxDevices + 1 {
			s := Slot{card, device}
			m, table := s.Mark(), s.Table()
			if m == 0 {
				continue
			}
			if other, twice := marks[m]; twice || m&^ENIMask != 0 || slotOf(s.number()) != s {
				t.Errorf("%v has mark %#x and number %d, which is %v's; %v has that mark", s, m, s.number(), slotOf(s.number()), other)
			}
			if other, twice := tables[table]; twice || isFurther(table) != (card > 0) {
				t.Errorf("%v has table %d, as %v", s, table, other)
			}
			marks[m], tables[table] = s, s
		}
	}
	for _, name := range aws.InstanceTypeNames() {
		kind, _ := aws.LookupInstanceType(name)
		for card, most := range kind.InterfacesPerNetworkCard {
			for device := range most {
				if (Slot{card, device}).Mark() == 0 {
					t.Errorf("%s: device %d of card %d has no mark", name, device, card)
				}
			}
		}
	}
	for _, s := range []Slot{{0, -1}, {0, maxDevices}, {-1, 0}, {maxCards, 0}, {6, 6}} {
		if s.Mark() != 0 {
			t.Errorf("%v has mark %#x", s, s.Mark())
		}
	}
	if got := (Slot{3, 2}).Table(); got != 10302 {
		t.Errorf("table %d, want upstream's 10302", got)
	}
}
