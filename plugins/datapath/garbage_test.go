package datapath

import (
	"net/netip"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func TestGarbageIsWhatIsOursAndNotValid(t *testing.T) {
	mine, old := Owner{"valid", "eth0"}, Owner{"gone", "eth0"}
	address, another := netip.MustParseAddr("192.168.10.77"), netip.MustParseAddr("192.168.10.78")
	f := Found{
		Links: []FoundLink{
			{"vlan.eth.7", 1, Mark{Owner: old, VLAN: 7}}, {"vlan0123456789a", 2, Mark{Owner: old, VLAN: 7}},
			{"vlan.eth.8", 3, Mark{Owner: mine, VLAN: 8}}, {"eni0123456789a", 4, Mark{Owner: mine, VLAN: 8}},
			{"eni0123456789b", 5, Mark{}},
		},
		Names: map[string]bool{
			"vlan.eth.7": true, "vlan0123456789a": true, "vlan.eth.8": true, "eni0123456789a": true, "eni0123456789b": true,
			"vlan.eth.9": true, "upstreams": true, // of another program, without a mark
		},
		Rules: []Rule{
			{Priority: PriorityBranch, Iif: "vlan.eth.7", Table: 107}, {Priority: PriorityBranch, Iif: "vlan0123456789a", Table: 107},
			{Priority: PriorityStandard, Iif: "eni0123456789a", Table: 108}, {Priority: PriorityBranch, Iif: "vlan.eth.9", Table: 109},
			{Priority: PriorityStandard, Iif: "died", Table: 110}, {Priority: PriorityBranch, Iif: "somebodys", Table: 77},
			{Priority: PriorityFromPod, From: address, Table: 2}, {Priority: PriorityFromPod, From: another, Table: 2},
			{Priority: PriorityFromPod, From: address, To: another, Table: 2},
		},
		Routed: map[netip.Addr][]string{another: {"upstreams"}, address: {"vlan0123456789a"}},
	}
	want := []string{
		"delete rule 10 iif vlan.eth.7 lookup 107", "delete rule 10 iif vlan0123456789a lookup 107", "delete rule 1537 iif died lookup 110",
		"delete rule 1536 from 192.168.10.77 lookup 2", "delete link vlan0123456789a", "delete link eni0123456789b", "delete link vlan.eth.7",
	}
	var got []string
	for _, s := range Garbage(f, Valid([]Owner{mine})) {
		got = append(got, s.String())
	}
	if !slices.Equal(got, want) {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}

// TestGarbageNeverTouchesTheValid: nothing of a valid sandbox, nor what an unmarked link needs, is ever named, and a
// second round finds nothing.
func TestGarbageNeverTouchesTheValid(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owners := []Owner{{"a", "eth0"}, {"b", "eth0"}, {"a", "eth1"}, {string(make([]byte, 200)), "eth0"}}
		valid := rapid.SliceOfDistinct(rapid.SampledFrom(owners), func(o Owner) Owner { return o }).Draw(t, "valid")
		f := Found{Names: map[string]bool{}, Routed: map[netip.Addr][]string{}}
		keep := map[string]bool{}
		for _, name := range rapid.SliceOfDistinct(rapid.SampledFrom([]string{"vlan.eth.1", "vlan.eth.2", "vlanaa", "vlanbb", "enicc", "enidd"}), func(s string) string { return s }).Draw(t, "links") {
			f.Names[name] = true
			a := netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 4).Draw(t, "address"))})
			f.Routed[a] = append(f.Routed[a], name)
			switch rapid.IntRange(0, 2).Draw(t, "whose") {
			case 0:
				keep[name] = true // unmarked, another program's
			case 1:
				o := rapid.SampledFrom(owners).Draw(t, "owner")
				f.Links = append(f.Links, FoundLink{Name: name, Mark: Mark{Owner: Owner{markedID(o.ContainerID), o.IfName}}})
				keep[name] = slices.Contains(valid, o)
			default:
				f.Links = append(f.Links, FoundLink{Name: name})
			}
		}
		for range rapid.IntRange(0, 8).Draw(t, "rules") {
			name := rapid.SampledFrom([]string{"vlan.eth.1", "vlan.eth.2", "vlanaa", "vlanbb", "enicc", "enidd"}).Draw(t, "iif")
			switch rapid.IntRange(0, 1).Draw(t, "kind") {
			case 0:
				f.Rules = append(f.Rules, Rule{Priority: PriorityBranch, Iif: name, Table: rapid.IntRange(99, 222).Draw(t, "table")})
			default:
				f.Rules = append(f.Rules, Rule{Priority: PriorityFromPod, From: netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(1, 4).Draw(t, "from"))}), Table: 2})
			}
		}
		for _, s := range Garbage(f, Valid(valid)) {
			switch s := s.(type) {
			case DeleteLink:
				if keep[s.Name] {
					t.Fatalf("%s of a valid sandbox, or of another program", s)
				}
				delete(f.Names, s.Name)
				f.Links = slices.DeleteFunc(f.Links, func(l FoundLink) bool { return l.Name == s.Name })
				for a, links := range f.Routed {
					f.Routed[a] = slices.DeleteFunc(links, func(l string) bool { return l == s.Name })
				}
			case DeleteRule:
				if keep[s.Iif] || slices.ContainsFunc(f.Routed[s.From], func(l string) bool { return keep[l] }) {
					t.Fatalf("%s is needed", s)
				}
				f.Rules = slices.DeleteFunc(f.Rules, func(r Rule) bool { return r == s.Rule })
			}
		}
		if again := Garbage(f, Valid(valid)); len(again) > 0 {
			t.Fatalf("found once more: %v", again)
		}
	})
}

// TestUpstreamsTeardownNamesOnlyItsOwn plays names, VLAN ids and addresses that are in use again.
func TestUpstreamsTeardownNamesOnlyItsOwn(t *testing.T) {
	a, b := netip.MustParseAddr("192.168.10.90"), netip.MustParseAddr("192.168.10.91")
	regular := Upstream{HostVeth: "eniaa", IfName: "eth0", Address: a}
	strict := Upstream{HostVeth: "vlanaa", IfName: "eth0", Address: a, VLAN: 7}
	unmarked := func(i int) observed { return observed{holder: other, index: i, kind: "veth"} }
	marked := func(i int) observed { return observed{holder: other, index: i, mark: Mark{Owner: Owner{"x", "eth0"}}} }
	toPod, fromPod := "delete rule 512 to 192.168.10.90 lookup 254", "delete rule 1536 from 192.168.10.90"
	iifVLAN, iifVeth := "delete rule 10 iif vlan.eth.7 lookup 107", "delete rule 10 iif vlanaa lookup 107"
	for name, tc := range map[string]struct {
		u    Upstream
		v    upstreamView
		want []string
	}{
		"regular":                        {regular, upstreamView{veth: unmarked(5), routes: []addressRoute{{MainTable, 5, a}}}, []string{toPod, fromPod, "delete link eniaa"}},
		"its namespace died":             {regular, upstreamView{}, []string{toPod, fromPod}},
		"the name is a newer one's":      {regular, upstreamView{veth: unmarked(6), routes: []addressRoute{{MainTable, 6, b}}}, []string{toPod, fromPod}},
		"the address is a newer one's":   {regular, upstreamView{routes: []addressRoute{{MainTable, 6, a}}}, nil},
		"the address is ours by now":     {regular, upstreamView{veth: marked(6), routes: []addressRoute{{LocalPodsTable, 6, a}}}, []string{toPod}},
		"strict":                         {strict, upstreamView{veth: unmarked(5), vlan: unmarked(4), routes: []addressRoute{{107, 5, a}, {107, 4, b}}}, []string{iifVLAN, iifVeth, "delete link vlanaa", "delete link vlan.eth.7"}},
		"the VLAN id is a newer one's":   {strict, upstreamView{veth: unmarked(5), vlan: unmarked(4), routes: []addressRoute{{107, 9, b}}}, []string{iifVeth, "delete link vlanaa"}},
		"of a standard pod, by its rule": {strict, upstreamView{vlan: unmarked(4), rules: []Rule{{Priority: PriorityFromPod, From: b, Table: 107}}}, []string{iifVeth}},
		"both are ours by now":           {strict, upstreamView{veth: marked(5), vlan: marked(4)}, nil},
	} {
		t.Run(name, func(t *testing.T) {
			var got []string
			for _, s := range tc.u.steps(tc.v) {
				got = append(got, s.String())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("got  %q\nwant %q", got, tc.want)
			}
		})
	}
}
