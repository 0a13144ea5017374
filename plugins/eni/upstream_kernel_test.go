//go:build kernel

package eni

import (
	"fmt"
	"net"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
)

// oldPod is a pod that the plugin of before has wired.
type oldPod struct {
	id, pod, ip string
	veth        string
	vlan        int // 0: regular
	table       int // of the result; 0: an older release, which does not tell it
}

const oldIP = "192.168.10.90"

var (
	upstreamRegular  = oldPod{id: "old-regular", pod: "shop/old", ip: oldIP, veth: datapath.HostVethName("eni", "shop", "old"), table: 2}
	upstreamPrimary  = oldPod{id: "old-primary", pod: "shop/old", ip: oldIP, veth: datapath.HostVethName("eni", "shop", "old"), table: 254}
	upstreamUntold   = oldPod{id: "old-untold", pod: "shop/old", ip: oldIP, veth: datapath.HostVethName("eni", "shop", "old")}
	upstreamStrict   = oldPod{id: "old-strict", pod: "shop/old", ip: branchIP, veth: datapath.HostVethName("vlan", "shop", "old"), vlan: 7}
	upstreamStandard = oldPod{id: "old-standard", pod: "shop/old", ip: branchIP, veth: datapath.HostVethName("eni", "shop", "old"), vlan: 7}
)

func (o oldPod) strict() bool { return o.vlan != 0 && o.veth[:4] == "vlan" }

// rule adds a rule to the host's.
func (n *node) rule(priority, table int, set func(*netlink.Rule)) {
	n.t.Helper()
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = unix.AF_INET, priority, table
	set(r)
	if err := n.host.Handle.RuleAdd(r); err != nil {
		n.t.Fatal(err)
	}
}

// wireUpstream wires a pod by hand as upstream's aws-cni leaves it, and puts its result into the runtime's cache.
func (n *node) wireUpstream(o oldPod) sandbox {
	t := n.t
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	pod := nstest.New(t)
	s := newSandbox(o.id, o.pod, pod)
	n.host.Veth(t, o.veth, pod, "eth0")
	host, eth0 := n.host.Link(t, o.veth), pod.Link(t, "eth0")
	gateway := net.IPv4(169, 254, 1, 1)
	pod.Address(t, "eth0", o.ip+"/32")
	pod.Route(t, netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: cidr("169.254.1.1/32"), Scope: netlink.SCOPE_LINK})
	pod.Route(t, netlink.Route{LinkIndex: eth0.Attrs().Index, Dst: cidr("0.0.0.0/0"), Gw: gateway})
	must(pod.Handle.NeighSet(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT, Family: unix.AF_INET, IP: gateway, HardwareAddr: host.Attrs().HardwareAddr}))
	rule := n.rule
	table, toPod := o.table, netlink.Route{LinkIndex: host.Attrs().Index, Dst: one(o.ip), Scope: netlink.SCOPE_LINK}
	if o.vlan != 0 {
		table = 100 + o.vlan
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.ParentIndex = fmt.Sprintf("vlan.eth.%d", o.vlan), n.trunk()
		attrs.HardwareAddr, _ = net.ParseMAC(branchMAC)
		must(n.host.Handle.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: o.vlan, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}))
		n.host.Up(t, attrs.Name)
		index := n.host.Link(t, attrs.Name).Attrs().Index
		n.host.Route(t, netlink.Route{LinkIndex: index, Table: table, Dst: cidr("192.168.32.1/32"), Scope: netlink.SCOPE_LINK})
		n.host.Route(t, netlink.Route{LinkIndex: index, Table: table, Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("192.168.32.1")})
	}
	if o.strict() {
		toPod.Table = table
		rule(10, table, func(r *netlink.Rule) { r.IifName = fmt.Sprintf("vlan.eth.%d", o.vlan) })
		rule(10, table, func(r *netlink.Rule) { r.IifName = o.veth })
	} else {
		rule(512, 254, func(r *netlink.Rule) { r.Dst = one(o.ip) })
		if table != 254 && table != 0 {
			rule(1536, table, func(r *netlink.Rule) { r.Src = one(o.ip) })
		}
	}
	n.host.Route(t, toPod)
	podEnd := map[string]any{"name": "eth0", "sandbox": s.netns}
	if o.table != 0 || o.vlan != 0 {
		podEnd["mac"] = fmt.Sprint(table)
	}
	dummy := map[string]any{"name": "dummy" + o.veth[len(o.veth)-11:], "mac": fmt.Sprint(o.vlan)}
	if o.vlan == 0 {
		dummy["sandbox"] = "1"
	}
	n.cacheResult("1.0.0", s, map[string]any{
		"interfaces": []map[string]any{{"name": o.veth}, podEnd, dummy},
		"ips":        []map[string]any{{"address": o.ip + "/32", "interface": 1}},
	})
	return s
}

func TestUpstreamsPodsAreCheckedAndTornDown(t *testing.T) {
	for name, o := range map[string]oldPod{
		"regular on a secondary ENI": upstreamRegular, "regular on the primary ENI": upstreamPrimary, "regular, of an older release": upstreamUntold,
		"strict": upstreamStrict, "standard": upstreamStandard,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			s := n.wireUpstream(o)
			for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
				if err := n.check(version, s); err != nil {
					t.Errorf("CHECK at %s: %v", version, err)
				}
			}
			r, what := netlink.NewRule(), "rule 512 to "+o.ip
			r.Priority, r.Table, r.Dst = 512, 254, one(o.ip)
			if o.strict() {
				r, what = netlink.NewRule(), "rule 10 iif vlan.eth.7"
				r.Priority, r.Table, r.IifName = 10, 107, "vlan.eth.7"
			}
			if err := n.host.Handle.RuleDel(r); err != nil {
				t.Fatal(err)
			}
			wantCode(t, n.check("1.0.0", s), CodeDifferent, what, "missing")
			if err := n.host.Handle.RuleAdd(r); err != nil {
				t.Fatal(err)
			}
			again := n.keepCache()
			n.mustDel(s)
			n.wantClean()
			again()
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// TestP1LateDELOfUpstreamsPodTouchesNoNewerPod: the same name, VLAN id and address are in use again.
func TestP1LateDELOfUpstreamsPodTouchesNoNewerPod(t *testing.T) {
	for name, o := range map[string]oldPod{"regular": upstreamRegular, "strict": upstreamStrict, "standard": upstreamStandard} {
		for _, by := range []string{"us", "upstream"} {
			t.Run(name+", replaced by "+by, func(t *testing.T) {
				n := newNode(t)
				n.agent.start(t)
				n.attachBranch(7, branchMAC, branchIP)
				old := n.wireUpstream(o)
				// The old one's links went with a reboot of its namespace, its rules too.
				late := n.keepCache()
				n.mustDel(old)
				n.wantClean()
				if by == "us" {
					reply := regularReply(o.ip, 2)
					if o.vlan != 0 {
						if reply = branchReply(7, branchMAC, o.ip, n.trunk()); !o.strict() {
							standard(reply)
						}
					}
					n.agent.set(o.pod, reply)
					n.mustAdd(newSandbox("new", o.pod, nstest.New(t)))
				} else {
					newer := o
					newer.id, newer.ip = "new", "192.168.47.99"
					n.wireUpstream(newer)
				}
				want := n.host.Snapshot(t)
				late()
				n.mustDel(old)
				if d := difference(want, n.host.Snapshot(t)); d != "" {
					t.Errorf("the late DEL changed\n%s", d)
				}
			})
		}
	}
}

// TestRulesOfAPodThatUpstreamHasForgottenGoWithTheADDThatGivesItsAddress: nobody would reach the new pod by the main table.
func TestRulesOfAPodThatUpstreamHasForgottenGoWithTheADDThatGivesItsAddress(t *testing.T) {
	for name, branch := range map[string]bool{"regular": false, "standard": true} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			address, reply := regularIP, regularReply(regularIP, 0)
			if branch {
				n.attachBranch(7, branchMAC, branchIP)
				address, reply = branchIP, branchReply(7, branchMAC, branchIP, n.trunk())
				standard(reply)
			}
			n.agent.set(goldenPod, reply)
			s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
			n.mustAdd(s)
			alone := n.host.Snapshot(t)
			toPod := func() { n.rule(512, 254, func(r *netlink.Rule) { r.Dst = one(address) }) }
			toPod()
			wantCode(t, n.check("1.0.0", s), CodeDifferent, "rule 512 to "+address, "is there")
			n.rule(1536, 3, func(r *netlink.Rule) { r.Src = one(address) })
			n.mustAdd(s)
			if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
				t.Errorf("beside what upstream has left:\n%s", difference(alone, after))
			}
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// TestALinkWithoutAnyResultIsNobodysToTouch: what no result names and carries no mark stays.
func TestALinkWithoutAnyResultIsNobodysToTouch(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	s := n.wireUpstream(upstreamStrict)
	want := n.host.Snapshot(t)
	n.forget()
	n.mustDel(s)
	if d := difference(want, n.host.Snapshot(t)); d != "" {
		t.Errorf("changed\n%s", d)
	}
}
