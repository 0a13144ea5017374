package datapath

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// model is a host's kernel as a set: links with their owners' marks, and rules and routes as text with the link that
// they hang on. It knows what the kernel takes away along with a link.
type model struct {
	links  map[string]string // name -> mark
	rules  map[string]Rule
	routes map[string]string // table and destination -> link
	index  map[string]int    // of links, by name
}

func newModel() *model {
	return &model{map[string]string{}, map[string]Rule{}, map[string]string{}, map[string]int{}}
}

func (m *model) do(s Step) {
	switch s := s.(type) {
	case AddVLAN:
		m.links[s.Name] = s.Mark.String()
	case AddVeth:
		m.links[s.Host] = s.Mark.String()
	case AddRoute:
		if s.Side == Host {
			m.routes[fmt.Sprint(s.Table, " ", s.Dst)] = s.Link
		}
	case AddRule:
		if s.Side == Pod {
			return // it goes with the namespace
		}
		any := s.Rule
		any.Table = 0
		m.do(DeleteRule{any})
		m.rules[s.Rule.String()] = s.Rule
	case DeleteRule:
		for r := range m.rules {
			if r == s.Rule.String() || s.Table == 0 && strings.HasPrefix(r, s.Rule.String()+" lookup ") {
				delete(m.rules, r)
			}
		}
	case DeleteRoute:
		delete(m.routes, fmt.Sprint(s.Table, " ", single(s.Address)))
	case DeleteLink:
		delete(m.links, s.Name)
		maps.DeleteFunc(m.routes, func(_, link string) bool { return link == s.Name })
	}
}

func (m *model) String() string {
	return fmt.Sprint(slices.Sorted(maps.Keys(m.links)), slices.Sorted(maps.Keys(m.rules)), m.routes)
}

// apply does what Apply does: steps, of which those that make a link claim its name first. It says whether all could be
// done.
func (m *model) apply(p Plan) bool {
	for i, s := range p.Steps {
		name, mark := "", Mark{}
		switch s := s.(type) {
		case AddVLAN:
			name, mark = s.Name, s.Mark
		case AddVeth:
			name, mark = s.Host, s.Mark
		}
		if held, err := ParseMark(m.links[name]); name != "" && err == nil {
			if !held.Is(p.Owner) && held.Number != mark.Number {
				for _, s := range Undo(p.Steps[:i]) {
					m.do(s)
				}
				return false
			}
			m.do(DeleteLink{name})
		}
		m.do(s)
	}
	return true
}

// teardown does what Teardown does, with a view of the model.
func (m *model) teardown(r Request, p Plan) {
	see := func(name string) observed {
		alias, ok := m.links[name]
		if !ok {
			return observed{}
		}
		o := observed{holder: other, index: m.indexOf(name)}
		if mark, err := ParseMark(alias); err == nil && mark.Is(r.Owner) {
			o.holder, o.mark = us, mark
		}
		return o
	}
	heldBy := func(a netip.Addr) int {
		if link, ok := m.routes[fmt.Sprint(LocalPodsTable, " ", single(a))]; ok {
			return m.indexOf(link)
		}
		return 0
	}
	names := []string{p.HostVeth.Host}
	v := view{veths: map[string]observed{names[0]: see(names[0])}, address: r.Address}
	if p.VLAN != nil {
		v.vlan, v.vlanLink = p.VLAN.ID, see(p.VLAN.Name)
		for _, o := range []observed{v.veths[names[0]], v.vlanLink} {
			if o.holder == us {
				v.learn(o.mark)
			}
		}
	} else {
		v.addressHeldBy = heldBy(r.Address)
	}
	for _, veth := range p.Further {
		v.further = append(v.further, furtherView{veth.Host, see(veth.Host), veth.Mark.Address, heldBy(veth.Mark.Address)})
	}
	for _, s := range teardownSteps(names, v) {
		m.do(s)
	}
}

func (m *model) indexOf(link string) int {
	if m.index[link] == 0 {
		m.index[link] = len(m.index) + 1
	}
	return m.index[link]
}

// genRequest draws from few values, so that sandboxes share them. A cluster has one family.
func genRequest(t *rapid.T, id string, ipv6 bool) Request {
	addresses := []netip.Addr{netip.MustParseAddr("192.168.40.1"), netip.MustParseAddr("192.168.40.2")}
	if ipv6 {
		addresses = []netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
	}
	r := Request{
		Owner:        Owner{ContainerID: id, IfName: "eth0"},
		PodNamespace: "shop", PodName: rapid.SampledFrom([]string{"a", "b", "a.1"}).Draw(t, "pod"),
		VethPrefix: "eni", MTU: 9001,
		Address: rapid.SampledFrom(addresses).Draw(t, "address"),
	}
	if rapid.Bool().Draw(t, "branch") {
		r.Branch = &Branch{
			VLAN: rapid.IntRange(1, 2).Draw(t, "vlan"), MAC: net.HardwareAddr{6, 1, 2, 3, 4, 5},
			Gateway: netip.MustParseAddr("192.168.32.1"), TrunkIfindex: 3, Mode: rapid.SampledFrom([]Mode{Strict, Standard}).Draw(t, "mode"),
		}
		if r.Address.Is6() {
			r.Branch.Gateway = netip.MustParseAddr("fe80:ec2::1")
		}
	} else {
		table := rapid.SampledFrom([]int{0, MainTable, 2, 3})
		r.Regular = &Regular{RouteTable: table.Draw(t, "table")}
		for _, a := range append(addresses, addresses[0].Next().Next().Next()) {
			if a != r.Address && rapid.Bool().Draw(t, "another card") {
				r.Further = append(r.Further, Further{a, Regular{RouteTable: table.Draw(t, "its table")}})
			}
		}
	}
	return r
}

func mustPlan(t interface{ Fatal(...any) }, r Request) Plan {
	p, err := NewPlan(r)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestUndoOfAnyPartOfAPlanLeavesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := mustPlan(t, genRequest(t, "one", rapid.Bool().Draw(t, "IPv6")))
		m := newModel()
		n := rapid.IntRange(0, len(p.Steps)).Draw(t, "done")
		for _, s := range p.Steps[:n] {
			m.do(s)
		}
		for _, s := range Undo(p.Steps[:n]) {
			m.do(s)
		}
		if m.String() != newModel().String() {
			t.Fatalf("left: %s", m)
		}
	})
}

// TestP1TeardownTakesItsOwnAndNothingElse: an older sandbox may share the pod's name, the VLAN id or the address with a
// newer one; whenever its DEL comes, the newer one is wired as if it had been alone.
func TestP1TeardownTakesItsOwnAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		older, newer := genRequest(t, "older", ipv6), genRequest(t, "newer", ipv6)
		po, pn := mustPlan(t, older), mustPlan(t, newer)
		alone := newModel()
		alone.apply(pn)
		m := newModel()
		m.apply(po)
		if !m.apply(pn) {
			// Its name on the host is another pod's, which has kept it.
			m.teardown(newer, pn)
			m.teardown(older, po)
			if m.String() != newModel().String() {
				t.Fatalf("left after an ADD that was refused: %s", m)
			}
			return
		}
		for range rapid.IntRange(1, 2).Draw(t, "dels") {
			m.teardown(older, po)
		}
		if m.String() != alone.String() {
			t.Fatalf("after the late DEL:\n%s\nalone:\n%s", m, alone)
		}
		m.teardown(newer, pn)
		if m.String() != newModel().String() {
			t.Fatalf("left: %s", m)
		}
	})
}

func TestNamesAreWhatOtherAgentsCompute(t *testing.T) {
	for prefix, want := range map[string]string{"eni": "enib5faff8a083", "vlan": "vlanb5faff8a083"} {
		if got := HostVethName(prefix, "kube-system", "coredns-57ff979f67-qqbdh"); got != want {
			t.Errorf("host veth %s, want %s", got, want)
		}
	}
	for number, want := range []string{"eni3a52ce78095", "enice799470a46"} {
		if got := HostVethName("eni", "", FurtherPodName("", number)); got != want {
			t.Errorf("host veth of interface %d is %s, want %s", number, got, want)
		}
	}
	for name, want := range map[string]int{"mNicIf1": 1, "mNicIf31": 31, "mNicIf32": 0, "mNicIf0": 0, "mNicIf01": 0, "mNicIf": 0, "eth0": 0, "mNicIf-1": 0} {
		if n, ok := FurtherNumber(name); ok != (want != 0) || ok && n != want {
			t.Errorf("%s: number %d, %t", name, n, ok)
		}
	}
	if VLANLinkName(7) != "vlan.eth.7" || VLANTable(7) != 107 {
		t.Error("VLAN link name or table")
	}
	for name, want := range map[string]int{"vlan.eth.7": 7, "vlan.eth.120": 120, "vlan.eth.121": 0, "vlan.eth.07": 0, "vlan.eth.": 0, "eth0": 0, "vlan.eth.-1": 0} {
		if id, ok := VLANLinkID(name); ok != (want != 0) || ok && id != want {
			t.Errorf("%s: id %d, %t", name, id, ok)
		}
	}
}

func TestMarksSurviveTheKernel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := Mark{Owner: Owner{
			ContainerID: rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.-]{0,300}`).Draw(t, "id"),
			IfName:      rapid.StringMatching(`[a-z0-9]{1,15}`).Draw(t, "if"),
		}, VLAN: rapid.IntRange(0, MaxVLAN).Draw(t, "vlan"), Mode: rapid.SampledFrom([]Mode{Strict, Standard}).Draw(t, "mode"),
			Address: netip.MustParseAddr("2001:db80:1111:2222:3333:4444:5555:6666"),
			Further: rapid.IntRange(0, MaxFurther).Draw(t, "further"), Number: rapid.IntRange(0, MaxFurther).Draw(t, "number")}
		text := m.String()
		if len(text) > 255 {
			t.Fatalf("%d bytes don't fit into an ifalias", len(text))
		}
		got, err := ParseMark(text)
		if err != nil || !got.Is(m.Owner) || got.VLAN != m.VLAN || got.Address != m.Address || got.Mode != m.Mode || got.Further != m.Further || got.Number != m.Number {
			t.Fatalf("%q: %+v, %v", text, got, err)
		}
		if got.Is(Owner{m.ContainerID + "x", m.IfName}) || got.Is(Owner{m.ContainerID, m.IfName + "x"}) {
			t.Fatal("another's mark is taken for ours")
		}
	})
}

func FuzzMark(f *testing.F) {
	f.Add("branchline:abc/eth0 vlan=7 ip=192.168.47.64")
	f.Add("branchline:abc/eth0 ip=192.168.47.64 further=2")
	f.Add("branchline:abc/eth0 ip=192.168.47.65 number=2")
	f.Add("branchline:/")
	f.Fuzz(func(t *testing.T, alias string) {
		m, err := ParseMark(alias)
		if err == nil && (m.ContainerID == "" || m.IfName == "" || m.VLAN < 0 || m.VLAN > MaxVLAN || m.Further < 0 || m.Further > MaxFurther || m.Number < 0 || m.Number > MaxFurther) {
			t.Fatalf("%q: %+v", alias, m)
		}
	})
}

func TestRequestsThatCannotBeWiredAreRefused(t *testing.T) {
	good := func() Request {
		return Request{
			Owner: Owner{"c", "eth0"}, PodNamespace: "a", PodName: "b", VethPrefix: "eni", MTU: 9001, Address: netip.MustParseAddr("192.168.47.64"),
			Branch: &Branch{VLAN: 7, MAC: net.HardwareAddr{6, 1, 2, 3, 4, 5}, Gateway: netip.MustParseAddr("192.168.32.1"), TrunkIfindex: 3},
		}
	}
	mustPlan(t, good())
	for name, change := range map[string]func(*Request){
		"no owner":            func(r *Request) { r.Owner.ContainerID = "" },
		"mtu too small":       func(r *Request) { r.MTU = 500 },
		"no address":          func(r *Request) { r.Address = netip.Addr{} },
		"link-local address":  func(r *Request) { r.Address = netip.MustParseAddr("fe80::1") },
		"mapped address":      func(r *Request) { r.Address = netip.MustParseAddr("::ffff:192.168.47.64") },
		"gateway of IPv4":     func(r *Request) { r.Address = netip.MustParseAddr("2001:db8::1") },
		"gateway of IPv6":     func(r *Request) { r.Branch.Gateway = netip.MustParseAddr("fe80:ec2::1") },
		"unknown mode":        func(r *Request) { r.Branch.Mode = 2 },
		"loopback":            func(r *Request) { r.Address = netip.MustParseAddr("127.0.0.1") },
		"both kinds":          func(r *Request) { r.Regular = &Regular{RouteTable: 2} },
		"neither kind":        func(r *Request) { r.Branch = nil },
		"vlan 0":              func(r *Request) { r.Branch.VLAN = 0 },
		"vlan 121":            func(r *Request) { r.Branch.VLAN = 121 },
		"multicast MAC":       func(r *Request) { r.Branch.MAC = net.HardwareAddr{1, 1, 2, 3, 4, 5} },
		"zero MAC":            func(r *Request) { r.Branch.MAC = make(net.HardwareAddr, 6) },
		"gateway is the pod":  func(r *Request) { r.Branch.Gateway = r.Address },
		"no trunk":            func(r *Request) { r.Branch.TrunkIfindex = 0 },
		"table local":         func(r *Request) { r.Branch = nil; r.Regular = &Regular{RouteTable: 255} },
		"table of local pods": func(r *Request) { r.Branch = nil; r.Regular = &Regular{RouteTable: LocalPodsTable} },
		"negative table":      func(r *Request) { r.Branch = nil; r.Regular = &Regular{RouteTable: -1} },
		"table of a VLAN":     func(r *Request) { r.Branch = nil; r.Regular = &Regular{RouteTable: VLANTable(1)} },
		"several of a branch": func(r *Request) { r.Further = []Further{{Address: r.Address.Next()}} },
		"an address twice":    func(r *Request) { r.Branch = nil; r.Regular = &Regular{}; r.Further = []Further{{Address: r.Address}} },
		"an address twice among the further": func(r *Request) {
			r.Branch, r.Regular = nil, &Regular{}
			r.Further = []Further{{Address: r.Address.Next()}, {Address: r.Address.Next()}}
		},
		"families mixed": func(r *Request) {
			r.Branch, r.Regular, r.Further = nil, &Regular{}, []Further{{Address: netip.MustParseAddr("2001:db8::1")}}
		},
		"no further address": func(r *Request) { r.Branch, r.Regular, r.Further = nil, &Regular{}, []Further{{}} },
		"further table of local pods": func(r *Request) {
			r.Branch, r.Regular = nil, &Regular{}
			r.Further = []Further{{r.Address.Next(), Regular{LocalPodsTable}}}
		},
		"too many further": func(r *Request) {
			r.Branch, r.Regular = nil, &Regular{}
			for a := r.Address.Next(); len(r.Further) <= MaxFurther; a = a.Next() {
				r.Further = append(r.Further, Further{Address: a})
			}
		},
		"the first called like a further": func(r *Request) {
			r.Branch, r.Regular, r.Owner.IfName = nil, &Regular{}, "mNicIf1"
			r.Further = []Further{{Address: r.Address.Next()}}
		},
		"bad prefix": func(r *Request) { r.Branch.Mode = Standard; r.VethPrefix = "vlan" },
	} {
		r := good()
		change(&r)
		if _, err := NewPlan(r); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

// A link that is there before IPv6 is off has an address already.
func TestIPv6OfThePodIsTurnedOffBeforeItsLinkIsThere(t *testing.T) {
	r := Request{
		Owner: Owner{ContainerID: "c", IfName: "eth0"}, PodNamespace: "n", PodName: "p", VethPrefix: "eni", MTU: 9001,
		Address: netip.MustParseAddr("192.168.0.9"), Regular: &Regular{RouteTable: MainTable}, DisableIPv6: true,
	}
	p, err := NewPlan(r)
	if err != nil || p.Steps[0] != (Step(DisableIPv6{})) {
		t.Errorf("first step %v, %v", p.Steps, err)
	}
	for _, address := range []string{"192.168.0.9", "2001:db8::9"} {
		r.Address, r.DisableIPv6 = netip.MustParseAddr(address), strings.Contains(address, ":")
		if p, err = NewPlan(r); err != nil || slices.Contains(p.Steps, Step(DisableIPv6{})) {
			t.Errorf("%s: %v, %v", address, p.Steps, err)
		}
	}
}
