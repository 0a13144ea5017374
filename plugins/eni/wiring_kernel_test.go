//go:build kernel

package eni

import (
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

const (
	goldenPod  = "kube-system/coredns-57ff979f67-qqbdh"
	branchMAC  = "06:20:0d:3c:5f:bc"
	branchIP   = "192.168.47.64"
	regularIP  = "192.168.10.77"
	goldenHash = "b5faff8a083"
)

func wantLines(t *testing.T, what string, got []string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%s:\ngot  %q\nwant %q", what, got, want)
	}
}

// wantPodSide checks what every pod has inside, section 7 of the wiring contract.
func wantPodSide(t *testing.T, host, pod *nstest.NS, hostVeth, address string) {
	t.Helper()
	veth := host.Link(t, hostVeth)
	if veth == nil {
		t.Fatalf("no host veth %s", hostVeth)
	}
	eth0 := pod.Link(t, "eth0")
	if eth0 == nil || eth0.Attrs().MTU != 9001 || eth0.Attrs().RawFlags&unix.IFF_UP == 0 {
		t.Fatalf("eth0 in the pod: %+v, want it up with MTU 9001", eth0)
	}
	if veth.Attrs().RawFlags&unix.IFF_UP == 0 || veth.Attrs().ParentIndex != eth0.Attrs().Index || veth.Attrs().MTU != 9001 {
		t.Errorf("host veth: up, MTU or peer wrong: %+v", veth.Attrs())
	}
	if got := host.ReadSysctl(t, "ipv4/conf/"+hostVeth+"/rp_filter"); got != "2" {
		t.Errorf("rp_filter of %s is %s, want 2", hostVeth, got)
	}
	wantLines(t, "routes in the pod", pod.Routes(t, unix.AF_INET, 254),
		"169.254.1.1/32 dev eth0 scope link table 254", "default via 169.254.1.1 dev eth0 scope universe table 254")
	snapshot := pod.Snapshot(t)
	for _, want := range []string{
		"address eth0 " + address + "/32",
		"neighbour eth0 169.254.1.1 " + veth.Attrs().HardwareAddr.String(),
	} {
		if !slices.Contains(snapshot, want) {
			t.Errorf("the pod lacks %q in\n%s", want, strings.Join(snapshot, "\n"))
		}
	}
}

func TestBranchPodHasTheContractsWiringInEveryVersion(t *testing.T) {
	for _, version := range specVersions {
		t.Run(version, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP)
			n.agent.set(goldenPod, branchReply(7, branchMAC, branchIP, n.trunk()))
			pod := nstest.New(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			res, err := n.add(version, s)
			if err != nil {
				t.Fatal(err)
			}
			if res.Version() != version {
				t.Errorf("result of version %s, want %s", res.Version(), version)
			}
			wantPodSide(t, n.host, pod, "vlan"+goldenHash, branchIP)
			vlan, ok := n.host.Link(t, "vlan.eth.7").(*netlink.Vlan)
			if !ok {
				t.Fatal("vlan.eth.7 is no VLAN link")
			}
			if vlan.VlanId != 7 || vlan.ParentIndex != n.trunk() || vlan.HardwareAddr.String() != branchMAC || vlan.RawFlags&unix.IFF_UP == 0 {
				t.Errorf("VLAN link: %+v", vlan)
			}
			for _, l := range []string{"vlan.eth.7", "vlan" + goldenHash} {
				if a := n.host.Link(t, l).Attrs().Alias; !strings.HasPrefix(a, "branchline:sandbox-1/eth0") {
					t.Errorf("ifalias of %s: %q", l, a)
				}
			}
			if got := n.host.ReadSysctl(t, "ipv4/conf/vlan.eth.7/rp_filter"); got != "2" {
				t.Errorf("rp_filter of the VLAN link is %s, want 2", got)
			}
			if got := n.host.ReadSysctl(t, "ipv6/conf/vlan"+goldenHash+"/addr_gen_mode"); got != "1" {
				t.Errorf("addr_gen_mode of the host veth is %s, want 1: it gets a link-local address", got)
			}
			wantLines(t, "table 107", n.host.Routes(t, unix.AF_INET, 107),
				"192.168.32.1/32 dev vlan.eth.7 scope link table 107",
				"default via 192.168.32.1 dev vlan.eth.7 scope universe table 107",
				branchIP+"/32 dev vlan"+goldenHash+" scope link table 107")
			wantLines(t, "table 510", n.host.Routes(t, unix.AF_INET, 510), branchIP+"/32 dev vlan"+goldenHash+" scope link table 510")
			wantLines(t, "rules", n.host.Rules(t, unix.AF_INET),
				"10: from all iif vlan.eth.7 lookup 107", "10: from all iif vlan"+goldenHash+" lookup 107",
				"20: from all lookup 255", "512: from all lookup 511", "32766: from all lookup 254", "32767: from all lookup 253")
			n.mustDel(s)
			n.wantClean()
			n.mustDel(s)
			if n.agent.holds() != 0 {
				t.Error("the agent still holds the sandbox")
			}
		})
	}
}

func TestRegularPodHasTheContractsWiring(t *testing.T) {
	for _, tc := range []struct {
		name  string
		table uint32
		rules []string
	}{
		{"on the primary ENI", 254, nil},
		{"by the agent's marks", 0, nil},
		{"on a secondary ENI", 2, []string{"1536: from " + regularIP + "/32 lookup 2"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.agent.set(goldenPod, regularReply(regularIP, tc.table))
			pod := nstest.New(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			n.mustAdd(s)
			wantPodSide(t, n.host, pod, "eni"+goldenHash, regularIP)
			wantLines(t, "table 511", n.host.Routes(t, unix.AF_INET, 511), regularIP+"/32 dev eni"+goldenHash+" scope link table 511")
			wantLines(t, "rules", n.host.Rules(t, unix.AF_INET), append(tc.rules,
				"20: from all lookup 255", "512: from all lookup 511", "32766: from all lookup 254", "32767: from all lookup 253")...)
			if err := talk(t, pod, regularIP, n.host, ""); err != nil {
				t.Errorf("node to pod: %v", err)
			}
			if err := talk(t, n.host, nodeAddress, pod, regularIP); err != nil {
				t.Errorf("pod to node: %v", err)
			}
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// TestEveryPacketOfABranchPodPassesItsVLAN shows strict mode: also what comes from the node itself, as its probes do,
// and what goes to it. The router stands where the branch ENI's security groups are.
func TestEveryPacketOfABranchPodPassesItsVLAN(t *testing.T) {
	for _, rpFilter := range []string{"0", "1", "2"} {
		t.Run("conf.all.rp_filter="+rpFilter, func(t *testing.T) {
			n := newNode(t)
			n.host.Sysctl(t, "ipv4/conf/all/rp_filter", rpFilter)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP)
			n.agent.set("shop/web", branchReply(7, branchMAC, branchIP, n.trunk()))
			n.agent.set("shop/plain", regularReply(regularIP, 254))
			pod, plain := nstest.New(t), nstest.New(t)
			n.vpc.Route(t, netlink.Route{LinkIndex: n.vpc.Link(t, "p0").Attrs().Index, Dst: cidr(regularIP + "/32"), Gw: net.ParseIP(nodeAddress)})
			n.mustAdd(newSandbox("sandbox-1", "shop/web", pod))
			n.mustAdd(newSandbox("sandbox-2", "shop/plain", plain))
			paths := []struct {
				name                   string
				server                 *nstest.NS
				serverAddr, clientAddr string
				client                 *nstest.NS
			}{
				{"pod to VPC", n.vpc, "192.168.0.1", branchIP, pod},
				{"VPC to pod", pod, branchIP, "192.168.0.1", n.vpc},
				{"node to pod", pod, branchIP, nodeAddress, n.host},
				{"pod to node", n.host, nodeAddress, branchIP, pod},
				{"pod to regular pod", plain, regularIP, branchIP, pod},
				{"regular pod to pod", pod, branchIP, regularIP, plain},
			}
			for _, p := range paths {
				before := *n.vpc.Link(t, "fabric.7").Attrs().Statistics
				if err := talk(t, p.server, p.serverAddr, p.client, p.clientAddr); err != nil {
					t.Errorf("%s: %v", p.name, err)
					continue
				}
				// At least the SYN and the data; the FINs may still be on their way.
				after := *n.vpc.Link(t, "fabric.7").Attrs().Statistics
				if after.RxPackets-before.RxPackets < 2 || after.TxPackets-before.TxPackets < 2 {
					t.Errorf("%s: %d packets from and %d to the branch ENI seen in the VPC: the rest went another way",
						p.name, after.RxPackets-before.RxPackets, after.TxPackets-before.TxPackets)
				}
			}
			// The counter-proof: with the branch ENI cut off, not even the node reaches the pod.
			if err := n.vpc.Handle.LinkSetDown(n.vpc.Link(t, "fabric.7")); err != nil {
				t.Fatal(err)
			}
			if err := talk(t, pod, branchIP, n.host, nodeAddress); err == nil {
				t.Error("the node reaches the pod without its branch ENI")
			}
		})
	}
}

func TestManyBranchPodsStayApart(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	var boxes []sandbox
	for i := 1; i <= 9; i++ {
		mac, ip, pod := fmt.Sprintf("06:20:0d:3c:5f:%02x", i), fmt.Sprintf("192.168.47.%d", i), fmt.Sprintf("shop/green-%d", i)
		n.attachBranch(i, mac, ip)
		n.agent.set(pod, branchReply(uint32(i), mac, ip, n.trunk()))
		ns := nstest.New(t)
		s := newSandbox(fmt.Sprintf("sandbox-%d", i), pod, ns)
		n.mustAdd(s)
		boxes = append(boxes, s)
		if err := talk(t, n.vpc, "192.168.0.1", ns, ip); err != nil {
			t.Errorf("pod %d: %v", i, err)
		}
	}
	for _, s := range boxes {
		n.mustDel(s)
	}
	n.wantClean()
}
