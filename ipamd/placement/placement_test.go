package placement

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

func tags(kv ...string) map[string]string {
	m := map[string]string{}
	for i := 0; i < len(kv); i += 2 {
		m[kv[i]] = kv[i+1]
	}
	return m
}

func TestTheNodeNamesItsENIConfigByFourWaysInOrder(t *testing.T) {
	const label, annotation = "topology.kubernetes.io/zone", "example.com/eni"
	n := Node{Labels: tags(LabelExternal, "external", label, "zone"), Annotations: tags(annotation, "annotated")}
	want := func(name, key string) {
		t.Helper()
		got, by := ConfigName(n, label, annotation)
		if got != name || key != "" && !slices.Contains([]string{"the node's label " + key, "the node's annotation " + key}, by) {
			t.Errorf("%q by %q, want %q by %q", got, by, name, key)
		}
	}
	want("external", LabelExternal)
	n.Labels[LabelExternal] = "" // an empty one names none
	want("annotated", annotation)
	delete(n.Annotations, annotation)
	want("zone", label)
	delete(n.Labels, label)
	want("default", "")
	n = Node{}
	want("default", "")
}

func TestWhereTheNextENIIsMade(t *testing.T) {
	primary := Place{"p", []string{"sg-node"}}
	other, mine := TagClusterPrefix+"other", TagClusterPrefix+"mine"
	discovery := func(subnets ...Subnet) Input {
		return Input{Primary: primary, Discovery: true, Cluster: "mine", Subnets: subnets}
	}
	with := func(in Input, f func(*Input)) Input { f(&in); return in }
	full := func(ids ...string) func(*Input) {
		return func(in *Input) {
			in.Full = map[string]bool{}
			for _, id := range ids {
				in.Full[id] = true
			}
		}
	}
	custom := Input{Primary: primary, Custom: true, Known: true, Discovery: true, Config: &ENIConfig{"a", "c", []string{"sg-pods"}}}
	p, in := Subnet{ID: "p", Free: 10}, func(id string, free int, kv ...string) Subnet {
		return Subnet{id, free, tags(append([]string{TagRole, "1"}, kv...)...)}
	}
	for name, c := range map[string]struct {
		in     Input
		want   []string
		reason Reason
	}{
		"nothing is known: the primary's":             {in: Input{Primary: primary, Discovery: true}, want: []string{"p"}},
		"no tags: the primary's":                      {in: discovery(p, Subnet{ID: "x", Free: 99}), want: []string{"p"}},
		"a subnet that is let in, the emptiest first": {in: discovery(p, in("x", 99), in("y", 5)), want: []string{"x", "p", "y"}},
		"and not with discovery off":                  {in: with(discovery(p, in("x", 99)), func(i *Input) { i.Discovery = false }), want: []string{"p"}},
		"a full one is passed over":                   {in: with(discovery(p, in("x", 99)), full("x")), want: []string{"p"}},
		"all are full":                                {in: with(discovery(p, in("x", 99)), full("x", "p")), reason: Full},
		"the primary's is kept out":                   {in: discovery(Subnet{"p", 10, tags(TagRole, "0")}, in("x", 1)), want: []string{"x"}},
		"kept out, and there is no other":             {in: discovery(Subnet{"p", 10, tags(TagRole, "0")}), reason: Excluded},
		"another cluster's":                           {in: discovery(p, in("x", 99, other, "shared")), want: []string{"p"}},
		"shared with this cluster":                    {in: discovery(p, in("x", 99, other, "shared", mine, "shared")), want: []string{"x", "p"}},
		"the primary's is another cluster's":          {in: discovery(Subnet{"p", 10, tags(other, "")}, in("x", 1)), want: []string{"x"}},
		"no name: the primary's is this cluster's":    {in: with(discovery(Subnet{"p", 10, tags(other, "")}, in("x", 99, other, "")), func(i *Input) { i.Cluster = "" }), want: []string{"p"}},
		"prefixes first where there are any":          {in: with(discovery(p, in("x", 99)), func(i *Input) { i.Prefixes, i.NoPrefix = true, map[string]bool{"x": true} }), want: []string{"p", "x"}},
		"a primary that EC2 does not show":            {in: discovery(in("x", 99)), want: []string{"x", "p"}},

		"custom: the ENIConfig's":             {in: custom, want: []string{"c"}},
		"custom comes before tags":            {in: with(custom, func(i *Input) { i.Subnets = []Subnet{in("x", 99), {ID: "c", Tags: tags(TagRole, "0")}} }), want: []string{"c"}},
		"custom: full":                        {in: with(custom, full("c")), reason: Full},
		"custom: nothing heard yet":           {in: with(custom, func(i *Input) { i.Known, i.Config = false, nil }), reason: NotKnown},
		"custom: no such ENIConfig":           {in: with(custom, func(i *Input) { i.Config = nil }), reason: NoConfig},
		"custom: one without a subnet":        {in: with(custom, func(i *Input) { i.Config = &ENIConfig{Name: "a"} }), reason: NoConfig},
		"custom: a subnet of another zone":    {in: with(custom, func(i *Input) { i.Subnets = []Subnet{p} }), reason: WrongSubnet},
		"custom: a subnet that can't be told": {in: with(custom, func(i *Input) { i.Subnets = nil }), want: []string{"c"}},
	} {
		plan := Decide(c.in)
		var got []string
		for _, place := range plan.Places {
			got = append(got, place.SubnetID)
			groups := "sg-node"
			if c.in.Custom {
				groups = "sg-pods"
			}
			if !slices.Equal(place.Groups, []string{groups}) {
				t.Errorf("%s: groups %v", name, place.Groups)
			}
		}
		if !slices.Equal(got, c.want) || plan.Reason != c.reason {
			t.Errorf("%s: got %v, reason %d; want %v, %d", name, got, plan.Reason, c.want, c.reason)
		}
	}
	custom.Config = &ENIConfig{Name: "a", Subnet: "c"}
	if got := Decide(custom).Places; !slices.Equal(got[0].Groups, primary.Groups) {
		t.Errorf("an ENIConfig without groups: %v", got)
	}
}

func TestWhichENIsServe(t *testing.T) {
	custom := Input{Primary: Place{SubnetID: "p"}, Custom: true, Known: true, Config: &ENIConfig{Name: "a", Subnet: "c"}}
	gone, wrong := custom, custom
	gone.Config, wrong.Subnets = nil, []Subnet{{ID: "p"}}
	tagged := Input{Primary: Place{SubnetID: "p"}, Discovery: true, Cluster: "mine", Subnets: []Subnet{
		{ID: "p", Tags: tags(TagRole, "0")}, {ID: "x", Tags: tags(TagRole, "1")}, {ID: "y"}, {ID: "z", Tags: tags(TagClusterPrefix+"other", "")},
	}}
	for _, c := range []struct {
		in      Input
		subnet  string
		primary bool
		want    bool
	}{
		{custom, "p", true, false},
		{custom, "p", false, false}, // made before custom networking was on
		{custom, "c", false, true},
		{gone, "c", false, true},
		{gone, "p", true, false},
		{wrong, "x", false, true},
		{tagged, "p", true, false},
		{tagged, "x", false, true},
		{tagged, "y", false, true}, // attached by somebody
		{tagged, "z", false, false},
		{tagged, "elsewhere", false, true},
		{Input{Primary: Place{SubnetID: "p"}, Discovery: true}, "p", true, true},
	} {
		if got := Decide(c.in).Serves(c.subnet, c.primary); got != c.want {
			t.Errorf("custom %t: an ENI in %s (primary %t) serves: %t", c.in.Custom, c.subnet, c.primary, got)
		}
	}
}

func TestPlacementHoldsForAnyInput(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ids := []string{"p", "a", "b", "c", "d"}
		in := Input{
			Primary: Place{"p", []string{"sg-node"}}, Custom: rapid.Bool().Draw(t, "custom"), Known: rapid.Bool().Draw(t, "known"),
			Discovery: rapid.Bool().Draw(t, "discovery"), Cluster: rapid.SampledFrom([]string{"", "mine"}).Draw(t, "cluster"),
			Prefixes: rapid.Bool().Draw(t, "prefixes"), Full: map[string]bool{}, NoPrefix: map[string]bool{},
		}
		if rapid.Bool().Draw(t, "config") {
			in.Config = &ENIConfig{Name: "x", Subnet: rapid.SampledFrom(ids).Draw(t, "configured")}
		}
		for _, id := range ids {
			in.Full[id], in.NoPrefix[id] = rapid.Bool().Draw(t, "full"), rapid.Bool().Draw(t, "noPrefix")
			if rapid.IntRange(0, 3).Draw(t, "shown") == 0 {
				continue
			}
			s := Subnet{ID: id, Free: rapid.IntRange(0, 9).Draw(t, "free"), Tags: map[string]string{}}
			if v := rapid.SampledFrom([]string{"", "0", "1"}).Draw(t, "role"); v != "" {
				s.Tags[TagRole] = v
			}
			for _, c := range []string{"mine", "other"} {
				if rapid.IntRange(0, 3).Draw(t, "cluster tag") == 0 {
					s.Tags[TagClusterPrefix+c] = "shared"
				}
			}
			in.Subnets = append(in.Subnets, s)
		}
		p := Decide(in)
		if (len(p.Places) == 0) == (p.Reason == None) {
			t.Fatalf("%d places and reason %d", len(p.Places), p.Reason)
		}
		seen := map[string]bool{}
		for _, place := range p.Places {
			if seen[place.SubnetID] || in.Full[place.SubnetID] || len(place.Groups) == 0 {
				t.Fatalf("%v is no place", place)
			}
			seen[place.SubnetID] = true
			if in.Custom && place.SubnetID != in.Config.Subnet {
				t.Fatalf("%v is not the ENIConfig's", place)
			}
			if !p.Serves(place.SubnetID, false) {
				t.Fatalf("an ENI made in %s would not serve", place.SubnetID)
			}
			if s := in.subnet(place.SubnetID); !in.Custom && in.Discovery && s != nil && s.Tags[TagRole] == "0" {
				t.Fatalf("pods are kept out of %s", s.ID)
			}
		}
		if in.Custom && p.Serves("p", true) {
			t.Fatal("the primary ENI serves with custom networking")
		}
		slices.Reverse(in.Subnets)
		if again := Decide(in); !slices.EqualFunc(again.Places, p.Places, func(a, b Place) bool { return a.SubnetID == b.SubnetID }) {
			t.Fatalf("%v, and in another order %v", p.Places, again.Places)
		}
	})
}

func TestTheRoleOfAnENI(t *testing.T) {
	r := Rules{InstanceID: "i-1", Untagged: true}
	closed := Rules{InstanceID: "i-1"}
	cards := Rules{InstanceID: "i-1", Untagged: true, Cards: true}
	ours := tags(TagInstance, "i-1")
	for name, c := range map[string]struct {
		f    Facts
		r    Rules
		want Role
		made bool
	}{
		"the primary, whatever it is tagged":     {Facts{Primary: true, Tags: tags(TagNoManage, "true")}, closed, Regular, false},
		"one that EC2 did not explain yet":       {Facts{Addressed: true}, r, HandsOff, false},
		"made by the agent":                      {Facts{Addressed: true, Described: true, Tags: ours}, closed, Regular, true},
		"made by another instance's agent":       {Facts{Addressed: true, Described: true, Tags: tags(TagInstance, "i-2")}, r, Regular, false},
		"the same, untagged ones not managed":    {Facts{Addressed: true, Described: true, Tags: tags(TagInstance, "i-2")}, closed, HandsOff, false},
		"untagged":                               {Facts{Addressed: true, Described: true}, r, Regular, false},
		"untagged and not managed":               {Facts{Addressed: true, Described: true}, closed, HandsOff, false},
		"hands off":                              {Facts{Addressed: true, Described: true, Tags: tags(TagNoManage, "true", TagInstance, "i-1")}, r, HandsOff, false},
		"hands on":                               {Facts{Addressed: true, Described: true, Tags: tags(TagNoManage, "false")}, closed, Regular, false},
		"a trunk":                                {Facts{Addressed: true, Described: true, Type: "trunk"}, closed, Trunk, false},
		"a trunk by its description":             {Facts{Addressed: true, Described: true, Description: TrunkDescription}, closed, Trunk, false},
		"on another card":                        {Facts{Addressed: true, Described: true, Card: 1}, r, HandsOff, false},
		"made by the agent while that was on":    {Facts{Addressed: true, Described: true, Card: 1, Tags: ours}, r, Regular, true},
		"EFA on another card":                    {Facts{Addressed: true, Described: true, Card: 1, Type: "efa", Tags: ours}, r, HandsOff, false},
		"device 0 of another card":               {Facts{Addressed: true, Described: true, Card: 3, Tags: tags(TagNoManage, "false")}, r, HandsOff, false},
		"on another card, that being on":         {Facts{Addressed: true, Described: true, Card: 1}, cards, Regular, false},
		"another card, untagged not managed":     {Facts{Addressed: true, Described: true, Card: 1}, Rules{InstanceID: "i-1", Cards: true}, HandsOff, false},
		"EFA with an address on another card":    {Facts{Addressed: true, Described: true, Card: 1, Type: "efa"}, cards, Regular, false},
		"EFA only on another card":               {Facts{Described: true, Card: 1, Type: "efa-only"}, cards, HandsOff, false},
		"hands off on another card":              {Facts{Addressed: true, Described: true, Card: 1, Tags: tags(TagNoManage, "true")}, cards, HandsOff, false},
		"EFA only":                               {Facts{Described: true, Type: "efa-only"}, r, HandsOff, false},
		"without an address":                     {Facts{Described: true}, r, HandsOff, false},
		"EFA with an address: used, never given": {Facts{Addressed: true, Described: true, Type: "efa", Tags: ours}, r, Regular, false},
	} {
		if role, made := RoleOf(c.f, c.r); role != c.want || made != c.made {
			t.Errorf("%s: %d, made %t; want %d, %t", name, role, made, c.want, c.made)
		}
	}
}
