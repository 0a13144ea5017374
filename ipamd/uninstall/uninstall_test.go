package uninstall

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/egress"
)

func TestWhatTheExecutablesMakeIsKnownHere(t *testing.T) {
	mark := datapath.Mark{Owner: datapath.Owner{ContainerID: "box", IfName: "eth0"}, VLAN: 7, Address: netip.MustParseAddr("10.0.0.7")}.String()
	for _, tc := range []struct {
		name, kind, alias string
		up, ours, pod     bool
		group             uint32
	}{
		{datapath.HostVethName("eni", "a", "b"), "veth", mark, true, true, true, 0},
		{datapath.VLANLinkName(7), "vlan", mark, true, true, false, 0},
		{datapath.HostVethName("vlan", "a", "b"), "veth", "", false, true, false, 0},
		{datapath.VLANLinkName(7), "vlan", "", false, true, false, 0},
		{egress.Owner{ContainerID: "box", IfName: "eth0"}.HostLink(egress.IPv6), "veth", egress.Owner{ContainerID: "box", IfName: "eth0"}.Mark(), true, true, false, 0},
		{datapath.VLANLinkName(7), "vlan", "", true, true, false, linkGroup},
		// Upstream's, and anybody's.
		{datapath.HostVethName("eni", "a", "b"), "veth", "", true, false, false, 0},
		{datapath.VLANLinkName(7), "vlan", "", true, false, false, 0},
		{"eth0", "device", "", false, false, false, 0},
		{"veth0", "veth", "", false, false, false, 0},
		{"cni0", "bridge", "somebody's branchline:", true, false, false, 0},
	} {
		l, ok := ours(tc.name, tc.kind, tc.alias, tc.up, tc.group)
		if ok != tc.ours || ok && l.pod != tc.pod || tc.alias == mark && l.sandbox != "box/eth0" {
			t.Errorf("%+v: %+v, %t", tc, l, ok)
		}
	}
	if priorityStrict != datapath.PriorityBranch || priorityFromPod != datapath.PriorityFromPod || [2]int{tableLocalPods, tableLocalPods} != [2]int{datapath.LocalPodsTable, hostnet.PodsTable} {
		t.Error("a priority or a table differs from the executable's")
	}
}

func TestOnlyRulesOfGonePodsGo(t *testing.T) {
	src := func(s string) *net.IPNet {
		_, n, _ := net.ParseCIDR(s)
		return n
	}
	there := map[string]bool{"vlan.eth.3": true}
	wired := []netip.Addr{netip.MustParseAddr("10.0.0.3")}
	for _, tc := range []struct {
		rule netlink.Rule
		gone bool
	}{
		{netlink.Rule{Priority: 10, IifName: "vlan.eth.7", Table: 107}, true},
		{netlink.Rule{Priority: 10, IifName: "vlanb5faff8a083", Table: 107}, true},
		{netlink.Rule{Priority: 1537, IifName: "enib5faff8a083", Table: 107}, true},
		{netlink.Rule{Priority: 1536, Src: src("10.0.0.7/32"), Table: 2}, true},
		{netlink.Rule{Priority: 10, IifName: "vlan.eth.3", Table: 103}, false},
		{netlink.Rule{Priority: 10, IifName: "tunnel0", Table: 107}, false},
		{netlink.Rule{Priority: 1536, Src: src("10.0.0.3/32"), Table: 2}, false},
		{netlink.Rule{Priority: 1536, Src: src("10.0.0.0/24"), Table: 2}, false},
		{netlink.Rule{Priority: 512, Src: src("10.0.0.7/32"), Table: 2}, false},
	} {
		if got := ofGonePod(tc.rule, there, wired); got != tc.gone {
			t.Errorf("%s: %t, want %t", tc.rule, got, tc.gone)
		}
	}
}
