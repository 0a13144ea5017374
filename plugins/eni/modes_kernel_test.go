//go:build kernel

package eni

import (
	"fmt"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

const (
	branchIP6  = "2001:db8:1::64"
	regularIP6 = "2001:db8::77"
)

// path is a conversation, and how many of the branch ENIs it passes on its way: 0, or 1 and 2 of them.
type path struct {
	name                   string
	server                 *nstest.NS
	serverAddr, clientAddr string
	client                 *nstest.NS
	passes                 []string // VPC's links
}

// wantPaths has each conversation take place, and pass the branch ENIs that it should pass, and no other.
func (n *node) wantPaths(paths []path, enis ...string) {
	n.t.Helper()
	count := func(link string) (packets [2]uint64) {
		s := n.vpc.Link(n.t, link).Attrs().Statistics
		return [2]uint64{s.RxPackets, s.TxPackets}
	}
	for _, p := range paths {
		before := map[string][2]uint64{}
		for _, e := range enis {
			before[e] = count(e)
		}
		if err := talk(n.t, p.server, p.serverAddr, p.client, p.clientAddr); err != nil {
			n.t.Errorf("%s: %v", p.name, err)
			continue
		}
		for _, e := range enis {
			// The SYN, the data and the FIN; what the kernel sends by itself (multicast listener reports, neighbour discovery)
			// stays below 3 in each direction. The last packets may still be on their way.
			want, through := slices.Contains(p.passes, e), false
			var after [2]uint64
			for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
				after = count(e)
				through = after[0]-before[e][0] >= 3 && after[1]-before[e][1] >= 3
				if through || !want || time.Now().After(end) {
					break
				}
			}
			if through != want {
				n.t.Errorf("%s: %d packets from and %d to the branch ENI on %s, want it passed: %t", p.name, after[0]-before[e][0], after[1]-before[e][1], e, want)
			}
		}
	}
}

// TestEachModesPathsInBothFamilies has a strict, a standard and a regular pod side by side on one node.
func TestEachModesPathsInBothFamilies(t *testing.T) {
	type addresses struct{ node, vpc, strict, standard, regular string }
	for _, family := range []struct {
		name   string
		reply  func(uint32, string, string, int) *rpc.AddReply
		is     addresses
		family int
	}{
		{"IPv4", branchReply, addresses{nodeAddress, "192.168.0.1", branchIP, "192.168.47.65", regularIP}, unix.AF_INET},
		{"IPv6", branchReply6, addresses{nodeAddress6, vpcAddress6, branchIP6, "2001:db8:1::65", regularIP6}, unix.AF_INET6},
	} {
		t.Run(family.name, func(t *testing.T) {
			n, a := newNode(t), family.is
			n.agent.start(t)
			const otherMAC = "06:20:0d:3c:5f:bd"
			n.attachBranch(7, branchMAC, a.strict)
			n.attachBranch(8, otherMAC, a.standard)
			n.agent.set("shop/strict", family.reply(7, branchMAC, a.strict, n.trunk()))
			n.agent.set("shop/standard", standard(family.reply(8, otherMAC, a.standard, n.trunk())))
			n.agent.set("shop/regular", regularReply(a.regular, 0))
			n.vpc.Route(t, netlink.Route{LinkIndex: n.vpc.Link(t, "p0").Attrs().Index, Dst: one(a.regular), Gw: net.ParseIP(a.node)})
			var boxes []sandbox
			ns := map[string]*nstest.NS{}
			for _, pod := range []string{"strict", "standard", "regular"} {
				ns[pod] = nstest.New(t)
				s := newSandbox("sandbox-"+pod, "shop/"+pod, ns[pod])
				n.mustAdd(s)
				boxes = append(boxes, s)
			}
			strict, standard, regular := ns["strict"], ns["standard"], ns["regular"]
			both, first, second := []string{"fabric.7", "fabric.8"}, []string{"fabric.7"}, []string{"fabric.8"}
			n.wantPaths([]path{
				{"strict to VPC", n.vpc, a.vpc, a.strict, strict, first},
				{"VPC to strict", strict, a.strict, a.vpc, n.vpc, first},
				{"node to strict", strict, a.strict, a.node, n.host, first},
				{"strict to node", n.host, a.node, a.strict, strict, first},
				{"strict to regular", regular, a.regular, a.strict, strict, first},
				{"regular to strict", strict, a.strict, a.regular, regular, first},
				{"standard to VPC", n.vpc, a.vpc, a.standard, standard, second},
				{"VPC to standard", standard, a.standard, a.vpc, n.vpc, second},
				{"node to standard", standard, a.standard, a.node, n.host, nil},
				{"standard to node", n.host, a.node, a.standard, standard, nil},
				{"standard to regular", regular, a.regular, a.standard, standard, nil},
				{"regular to standard", standard, a.standard, a.regular, regular, nil},
				{"strict to standard", standard, a.standard, a.strict, strict, both},
				{"standard to strict", strict, a.strict, a.standard, standard, both},
				{"VPC to regular", regular, a.regular, a.vpc, n.vpc, nil},
				{"regular to node", n.host, a.node, a.regular, regular, nil},
			}, both...)
			for _, s := range boxes {
				n.mustDel(s)
			}
			n.wantClean()
		})
	}
}

func TestStandardPodHasItsWiring(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.attachBranch(7, branchMAC, branchIP)
	n.agent.set(goldenPod, standard(branchReply(7, branchMAC, branchIP, n.trunk())))
	pod := nstest.New(t)
	s := newSandbox("sandbox-1", goldenPod, pod)
	n.mustAdd(s)
	wantPodSide(t, n.host, pod, "eni"+goldenHash, branchIP)
	if a := n.host.Link(t, "eni"+goldenHash).Attrs().Alias; a != "branchline:sandbox-1/eth0 vlan=7 mode=standard ip="+branchIP {
		t.Errorf("ifalias %q", a)
	}
	wantLines(t, "table 107", n.host.Routes(t, unix.AF_INET, 107),
		"192.168.32.1/32 dev vlan.eth.7 scope link table 107", "default via 192.168.32.1 dev vlan.eth.7 scope universe table 107")
	wantLines(t, "table 511", n.host.Routes(t, unix.AF_INET, 511), branchIP+"/32 dev eni"+goldenHash+" scope link table 511")
	wantLines(t, "rules", n.host.Rules(t, unix.AF_INET),
		"20: from all lookup 255", "512: from all lookup 511", "1537: from all iif eni"+goldenHash+" lookup 107",
		"32766: from all lookup 254", "32767: from all lookup 253")
	n.mustDel(s)
	n.wantClean()
}

func TestIPv6BranchPodHasItsWiringInEveryVersion(t *testing.T) {
	for _, version := range specVersions {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP6)
			n.agent.set(goldenPod, branchReply6(7, branchMAC, branchIP6, n.trunk()))
			pod := nstest.New(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			res, err := n.add(version, s)
			if err != nil {
				t.Fatal(err)
			}
			if res.Version() != version {
				t.Errorf("result of version %s, want %s", res.Version(), version)
			}
			for _, away := range []bool{false, true} {
				if version == "0.3.1" {
					break // has no CHECK
				}
				if away {
					n.agent.stop()
				}
				if err := n.check(version, s); err != nil {
					t.Errorf("CHECK, agent away %t: %v", away, err)
				}
			}
			if version != "0.3.1" {
				n.agent.start(t)
			}
			veth, vlan := "vlan"+goldenHash, "vlan.eth.7"
			for _, l := range []string{veth, vlan} {
				if got := n.host.ReadSysctl(t, "ipv6/conf/"+l+"/accept_ra"); got != "0" {
					t.Errorf("%s listens to router advertisements: accept_ra is %s", l, got)
				}
			}
			wantLines(t, "routes in the pod", slices.DeleteFunc(pod.Routes(t, unix.AF_INET6, 254), func(r string) bool { return r == branchIP6+"/128 dev eth0 scope universe table 254" }),
				"default via fe80::1 dev eth0 scope universe table 254", "fe80::1/128 dev eth0 scope universe table 254")
			wantLines(t, "table 107", n.host.Routes(t, unix.AF_INET6, 107),
				"default via fe80:ec2::1 dev "+vlan+" scope universe table 107", "fe80:ec2::1/128 dev "+vlan+" scope universe table 107",
				branchIP6+"/128 dev "+veth+" scope universe table 107")
			wantLines(t, "rules", n.host.Rules(t, unix.AF_INET6),
				"4: from fe80:ec2::1/128 lookup 255", "10: from all iif "+vlan+" lookup 107", "10: from all iif "+veth+" lookup 107",
				"20: from all lookup 255", "512: from all lookup 511", "32766: from all lookup 254")
			for _, want := range []struct {
				ns   *nstest.NS
				line string
			}{
				{pod, "address eth0 " + branchIP6 + "/128"},
				{pod, "neighbour eth0 fe80::1 " + n.host.Link(t, veth).Attrs().HardwareAddr.String()},
				{n.host, "neighbour " + veth + " " + branchIP6 + " " + pod.Link(t, "eth0").Attrs().HardwareAddr.String()},
			} {
				if s := want.ns.Snapshot(t); !slices.Contains(s, want.line) {
					t.Errorf("no %q in %q", want.line, s)
				}
			}
			// At once: nothing of it may still look for duplicates.
			if err := talk(t, n.vpc, vpcAddress6, pod, branchIP6); err != nil {
				t.Error(err)
			}
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// TestP1ASwitchOfModesNeverLeavesAnotherSandboxesRules: the newer sandbox of a pod has another mode, VLAN id and kind
// than the older one, whose DEL comes late.
func TestP1ASwitchOfModesNeverLeavesAnotherSandboxesRules(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	replies := map[string]*rpc.AddReply{
		"strict":   branchReply(7, branchMAC, branchIP, n.trunk()),
		"standard": standard(branchReply(7, branchMAC, branchIP, n.trunk())),
		"regular":  regularReply(branchIP, 2),
		"marked":   regularReply(branchIP, 0),
	}
	for _, newer := range []string{"strict", "standard", "regular", "marked"} {
		second := newSandbox("sandbox-2", goldenPod, nstest.New(t))
		n.agent.set(goldenPod, replies[newer])
		n.mustAdd(second)
		alone := n.host.Snapshot(t)
		n.mustDel(second)
		n.wantClean()
		for _, older := range []string{"strict", "standard", "regular"} {
			t.Run(fmt.Sprintf("%s then %s", older, newer), func(t *testing.T) {
				first := newSandbox("sandbox-1", goldenPod, nstest.New(t))
				n.agent.set(goldenPod, replies[older])
				n.mustAdd(first)
				n.agent.set(goldenPod, replies[newer])
				second.netns = nstest.New(t).Path()
				n.mustAdd(second)
				n.mustDel(first)
				if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
					t.Errorf("after the late DEL:\n%s", difference(alone, after))
				}
				n.mustDel(second)
				n.wantClean()
			})
		}
	}
}

func TestP31EarlyDemuxFollowsTheAgentsWord(t *testing.T) {
	n := newNode(t)
	settings := []string{"ipv4/tcp_early_demux", "ipv4/udp_early_demux"}
	for _, s := range settings {
		n.host.Sysctl(t, s, "1")
	}
	n.agent.start(t)
	reply := branchReply(7, branchMAC, branchIP, n.trunk())
	reply.Host = &rpc.HostSettings{TcpEarlyDemux: proto.Bool(false)}
	n.agent.set(goldenPod, reply)
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	for _, s := range settings {
		if v := n.host.ReadSysctl(t, s); v != "0" {
			t.Errorf("%s is %s with a strict pod", s, v)
		}
	}
	n.agent.mu.Lock()
	n.agent.after = &rpc.HostSettings{TcpEarlyDemux: proto.Bool(true)}
	n.agent.mu.Unlock()
	n.mustDel(s)
	for _, s := range settings {
		if v := n.host.ReadSysctl(t, s); v != "1" {
			t.Errorf("%s is %s after the last strict pod", s, v)
		}
	}
	n.wantClean()
}
