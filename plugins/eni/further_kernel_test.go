//go:build kernel

package eni

import (
	"encoding/binary"
	"fmt"
	"net"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
)

// cards is a node with two network cards beside the default one, and a pod's addresses on them.
type cards struct {
	name              string
	family            int
	vpc, node         string // of the default card
	addresses         []string
	gateway, vpcRoute string
}

var cardFamilies = []cards{
	{"IPv4", unix.AF_INET, "192.168.0.1", nodeAddress, []string{regularIP, "192.168.64.77", "192.168.96.77"}, "169.254.1.1", "/32"},
	{"IPv6", unix.AF_INET6, vpcAddress6, nodeAddress6, []string{regularIP6, "2001:db8:64::77", "2001:db8:96::77"}, "fe80::1", "/128"},
}

// attach cables the cards as the agent and the VPC have them: card n's table leads to the VPC by it, and the VPC leads the
// pod's address on it to it.
func (c cards) attach(n *node) {
	n.t.Helper()
	for i, address := range c.addresses {
		link, far := "p0", c.node
		if i > 0 {
			card, fabric := fmt.Sprint("card", i), fabricLink(i)
			n.host.Veth(n.t, card, n.vpc, fabric)
			for ns, l := range map[*nstest.NS]string{n.host: card, n.vpc: fabric} {
				ns.Sysctl(n.t, "ipv4/conf/"+l+"/rp_filter", "2")
			}
			near, bits := fmt.Sprintf("10.%d.0.1", i), "/24"
			link, far = fabric, fmt.Sprintf("10.%d.0.2", i)
			if c.family == unix.AF_INET6 {
				near, far, bits = fmt.Sprintf("fd00:%d::1", i), fmt.Sprintf("fd00:%d::2", i), "/64"
			}
			n.vpc.Address(n.t, fabric, near+bits)
			n.host.Address(n.t, card, far+bits)
			n.host.Route(n.t, netlink.Route{Dst: everything(c.family), Gw: net.ParseIP(near), LinkIndex: n.host.Link(n.t, card).Attrs().Index, Table: 10001 + 100*i})
		}
		n.vpc.Route(n.t, netlink.Route{Dst: one(address), Gw: net.ParseIP(far), LinkIndex: n.vpc.Link(n.t, link).Attrs().Index})
	}
	n.before = n.host.Snapshot(n.t)
}

// fabricLink is the VPC's end of a card, and podLink the pod's of its interface on it.
func fabricLink(card int) string {
	if card == 0 {
		return "p0"
	}
	return fmt.Sprint("fabric-card", card)
}

func podLink(card int) string {
	if card == 0 {
		return "eth0"
	}
	return datapath.FurtherIfName(card)
}

func everything(family int) *net.IPNet {
	if family == unix.AF_INET6 {
		return cidr("::/0")
	}
	return cidr("0.0.0.0/0")
}

// severalHashes are what the first three interfaces of goldenPod are called by on the host.
var severalHashes = []string{
	goldenHash, datapath.HostVethName("", "kube-system", "coredns-57ff979f67-qqbdh.1"), datapath.HostVethName("", "kube-system", "coredns-57ff979f67-qqbdh.2"),
}

// newSeveral is a node with a pod of three interfaces to be.
func newSeveral(t *testing.T, c cards) (*node, *nstest.NS, sandbox) {
	t.Helper()
	n := newNode(t)
	n.agent.start(t)
	c.attach(n)
	n.agent.set(goldenPod, several(regularReply(c.addresses[0], 0), c.addresses[1:]...))
	pod := nstest.New(t)
	return n, pod, newSandbox("sandbox-1", goldenPod, pod)
}

// TestAPodWithThreeInterfacesReachesTheVPCByEach: what has an interface's address leaves by it and by its card, answers come
// back to it; what chooses none leaves by eth0.
func TestAPodWithThreeInterfacesReachesTheVPCByEach(t *testing.T) {
	for _, c := range cardFamilies {
		t.Run(c.name, func(t *testing.T) {
			n, pod, s := newSeveral(t, c)
			// As strict as it may be met: what comes in must be what the way back leads to.
			pod.Sysctl(t, "ipv4/conf/all/rp_filter", "1")
			n.mustAdd(s)
			for i, a := range c.addresses {
				name, table := podLink(i), 254
				if i > 0 {
					table = 100 + i
				}
				host := n.host.Link(t, "eni"+severalHashes[i])
				l := pod.Link(t, name)
				if host == nil || l == nil || l.Attrs().MTU != 9001 || l.Attrs().RawFlags&unix.IFF_UP == 0 || host.Attrs().ParentIndex != l.Attrs().Index {
					t.Fatalf("%s: %+v, its host's end %+v", name, l, host)
				}
				scope := "link"
				if c.family == unix.AF_INET6 {
					scope = "universe"
				}
				routes := slices.DeleteFunc(pod.Routes(t, c.family, table), func(r string) bool {
					return c.family == unix.AF_INET6 && strings.HasPrefix(r, "2001:db8:") // the kernel's, to the pod's own addresses
				})
				wantLines(t, fmt.Sprintf("table %d in the pod", table), routes,
					c.gateway+c.vpcRoute+" dev "+name+" scope "+scope+" table "+fmt.Sprint(table),
					"default via "+c.gateway+" dev "+name+" scope universe table "+fmt.Sprint(table))
				snapshot := pod.Snapshot(t)
				for _, want := range []string{"address " + name + " " + a + c.vpcRoute, "neighbour " + name + " " + c.gateway + " " + host.Attrs().HardwareAddr.String()} {
					if !slices.Contains(snapshot, want) {
						t.Errorf("the pod lacks %q in\n%s", want, strings.Join(snapshot, "\n"))
					}
				}
				if alias := host.Attrs().Alias; !strings.HasPrefix(alias, "branchline:sandbox-1/eth0 ") {
					t.Errorf("ifalias of %s: %q", host.Attrs().Name, alias)
				}
			}
			rules := pod.Rules(t, c.family)
			for i, a := range c.addresses[1:] {
				if want := fmt.Sprintf("1: from %s%s lookup %d", a, c.vpcRoute, 101+i); !slices.Contains(rules, want) {
					t.Errorf("the pod lacks the rule %q in %q", want, rules)
				}
			}
			for i, from := range append(slices.Clone(c.addresses), "") {
				i %= len(c.addresses) // without a source of its choice: the first
				there, back := ask(t, n.vpc, c.vpc, pod, from)
				if there != fabricLink(i) || back != podLink(i) {
					t.Errorf("pod to VPC from %q: by %s, and the answer by %s", from, there, back)
				}
			}
			for i, a := range c.addresses {
				there, back := ask(t, pod, a, n.vpc, c.vpc)
				if there != podLink(i) || back != fabricLink(i) {
					t.Errorf("VPC to the pod's %s: by %s, and the answer by %s", a, there, back)
				}
				if err := talk(t, pod, a, n.host, ""); err != nil {
					t.Errorf("node to the pod's %s: %v", a, err)
				}
			}
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// ask sends a datagram from one namespace to another and one back, and says by which links they came in.
func ask(t *testing.T, server *nstest.NS, serverAddr string, client *nstest.NS, clientAddr string) (there, back string) {
	t.Helper()
	listen := func(ns *nstest.NS, address string) *net.UDPConn {
		t.Helper()
		network, told := "udp4", func(fd uintptr) error { return unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_PKTINFO, 1) }
		if strings.Contains(serverAddr, ":") {
			network, told = "udp6", func(fd uintptr) error {
				return unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
			}
		}
		var conn net.PacketConn
		ns.Do(t, func() (err error) {
			config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) (err error) {
				if e := raw.Control(func(fd uintptr) { err = told(fd) }); e != nil {
					return e
				}
				return err
			}}
			conn, err = config.ListenPacket(t.Context(), network, net.JoinHostPort(address, "0"))
			return err
		})
		t.Cleanup(func() { conn.Close() })
		if err := conn.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		return conn.(*net.UDPConn)
	}
	// hear is who has sent the next datagram, and the link that it has come by.
	hear := func(ns *nstest.NS, conn *net.UDPConn) (from *net.UDPAddr, link string) {
		t.Helper()
		data, oob := make([]byte, 64), make([]byte, 256)
		_, n, _, from, err := conn.ReadMsgUDP(data, oob)
		if err != nil {
			t.Errorf("from %q to %s: %v", clientAddr, serverAddr, err)
			return nil, "none"
		}
		messages, err := unix.ParseSocketControlMessage(oob[:n])
		if err != nil || len(messages) != 1 {
			t.Fatalf("control messages %v, %v", messages, err)
		}
		at := 0 // of the index in struct in_pktinfo, and in6_pktinfo
		if messages[0].Header.Type == unix.IPV6_PKTINFO {
			at = 16
		}
		l, err := ns.Handle.LinkByIndex(int(binary.NativeEndian.Uint32(messages[0].Data[at:])))
		if err != nil {
			t.Fatal(err)
		}
		return from, l.Attrs().Name
	}
	s, c := listen(server, serverAddr), listen(client, clientAddr)
	if _, err := c.WriteTo([]byte("who"), s.LocalAddr()); err != nil {
		t.Errorf("from %q to %s: %v", clientAddr, serverAddr, err)
		return "none", "none"
	}
	from, there := hear(server, s)
	if from == nil {
		return there, "none"
	}
	if clientAddr != "" && !from.IP.Equal(net.ParseIP(clientAddr)) {
		t.Errorf("%s sees %s, not %s", serverAddr, from.IP, clientAddr)
	}
	if _, err := s.WriteTo([]byte("me"), from); err != nil {
		t.Errorf("from %s to %s: %v", serverAddr, from, err)
		return there, "none"
	}
	_, back = hear(client, c)
	return there, back
}

// TestDELOfAPodWithThreeInterfacesLeavesNothing by whatever is still known of it.
func TestDELOfAPodWithThreeInterfacesLeavesNothing(t *testing.T) {
	c := cardFamilies[0]
	n, _, s := newSeveral(t, c)
	dies := func() { // its namespace goes, and all its links with it
		for _, hash := range severalHashes {
			if err := n.host.Handle.LinkDel(n.host.Link(t, "eni"+hash)); err != nil {
				t.Fatal(err)
			}
		}
	}
	gone := s
	gone.netns = ""
	noArgs := s
	noArgs.args = "none"
	for name, how := range map[string]struct {
		harm func()
		as   sandbox
		gc   bool
	}{
		"with its result":                         {func() {}, s, false},
		"without its namespace":                   {func() {}, gone, false},
		"without CNI_ARGS":                        {func() {}, noArgs, false},
		"its result lost":                         {n.forget, s, false},
		"its namespace dead":                      {dies, gone, false},
		"its result lost, its namespace dead, GC": {func() { dies(); n.forget() }, gone, true},
		"GC alone":                                {func() {}, sandbox{}, true},
		"its result lost and its first link gone": {func() {
			n.forget()
			if err := n.host.Handle.LinkDel(n.host.Link(t, "eni"+goldenHash)); err != nil {
				t.Fatal(err)
			}
		}, s, false},
		"with another prefix configured": {func() { n.config["vethPrefix"] = "ce" }, s, false},
	} {
		n.mustAdd(s)
		if err := n.check("1.1.0", s); err != nil {
			t.Errorf("%s: CHECK before: %v", name, err)
		}
		how.harm()
		if how.as.id != "" {
			n.mustDel(how.as)
			n.mustDel(how.as)
		}
		if how.gc {
			if err := n.gc(); err != nil {
				t.Error(err)
			}
		}
		if after := n.host.Snapshot(t); !slices.Equal(n.before, after) {
			t.Fatalf("%s: left behind on the host:\n%s", name, difference(n.before, after))
		}
		n.config["vethPrefix"] = "eni"
	}
}

// TestCHECKOfAPodWithThreeInterfaces names what is wrong with a further one, with the agent and without it; datapath's own
// test harms every object.
func TestCHECKOfAPodWithThreeInterfaces(t *testing.T) {
	c := cardFamilies[0]
	n, pod, s := newSeveral(t, c)
	for _, away := range []bool{false, true} {
		n.agent.stop()
		n.agent.start(t)
		n.mustAdd(s)
		if away {
			n.agent.stop()
		}
		for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
			if err := n.check(version, s); err != nil {
				t.Errorf("agent away %t: CHECK at %s: %v", away, version, err)
			}
		}
		rule := netlink.NewRule()
		rule.Priority, rule.Src, rule.Table = 1, one(c.addresses[2]), 102
		if err := pod.Handle.RuleDel(rule); err != nil {
			t.Fatal(err)
		}
		wantCode(t, n.check("1.1.0", s), CodeDifferent, "rule 1 from "+c.addresses[2]+" lookup 102 (pod): missing", goldenPod)
		if err := pod.Handle.LinkDel(pod.Link(t, "mNicIf1")); err != nil {
			t.Fatal(err)
		}
		wantCode(t, n.check("1.1.0", s), CodeDifferent, "eni"+severalHashes[1], "missing")
		n.mustDel(s)
		n.wantClean()
	}
}

// TestP1APodsNextSandboxReplacesAllItsInterfaces whose DEL comes late, and may have had more of them.
func TestP1APodsNextSandboxReplacesAllItsInterfaces(t *testing.T) {
	c := cardFamilies[0]
	n, _, older := newSeveral(t, c)
	newer := newSandbox("sandbox-2", goldenPod, nstest.New(t))
	next := several(regularReply("192.168.10.78", 2), "192.168.64.78")
	n.agent.set(goldenPod, next)
	n.mustAdd(newer)
	alone := n.host.Snapshot(t)
	n.mustDel(newer)
	for name, lose := range map[string]func(){"its result there": func() {}, "its result lost": n.forget} {
		n.agent.set(goldenPod, several(regularReply(c.addresses[0], 3), c.addresses[1:]...))
		n.mustAdd(older)
		n.agent.set(goldenPod, next)
		n.mustAdd(newer)
		if err := n.check("1.1.0", newer); err != nil {
			t.Errorf("%s: CHECK before the older one's DEL: %v", name, err)
		}
		lose()
		n.mustDel(older)
		if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
			t.Errorf("%s: after the older sandbox's DEL:\n%s", name, difference(alone, after))
		}
		if err := n.check("1.1.0", newer); err != nil {
			t.Errorf("%s: CHECK: %v", name, err)
		}
		n.mustDel(newer)
		n.wantClean()
	}
}

// TestP1NoPodTakesTheLinkOfAnotherThatIsCalledLikeItsInterface: shop/web.1, and interface 1 of shop/web.
func TestP1NoPodTakesTheLinkOfAnotherThatIsCalledLikeItsInterface(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set("shop/web", several(regularReply(regularIP, 2), "192.168.64.77"))
	n.agent.set("shop/web.1", regularReply("192.168.10.78", 2))
	web, dotted := newSandbox("sandbox-1", "shop/web", nstest.New(t)), newSandbox("sandbox-2", "shop/web.1", nstest.New(t))
	for _, order := range [][2]sandbox{{web, dotted}, {dotted, web}} {
		n.mustAdd(order[0])
		wired := n.host.Snapshot(t)
		same := func(when string) {
			t.Helper()
			if after := n.host.Snapshot(t); !slices.Equal(wired, after) {
				t.Errorf("%s:\n%s", when, difference(wired, after))
			}
		}
		_, err := n.add("1.0.0", order[1])
		wantCode(t, err, CodeConflict, "eni"+datapath.HostVethName("", "shop", "web.1"), "rename")
		same("after " + order[1].name + " was refused")
		n.mustDel(order[1])
		same("after the DEL of " + order[1].name)
		n.mustDel(order[0])
		n.wantClean()
	}
}
