//go:build kernel

package hostnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// world is a node with a primary ENI (eth0), a secondary one (ens6) and a trunk (eth1) with one branch pod in strict mode;
// another namespace is the VPC's router behind all of them. Pods are wired by hand, as the CNI executable does.
type world struct {
	ipv6                      bool
	node, vpc, strict, simple *nstest.NS
	k                         *Kernel
	d                         Desired

	nodeAddr, eniAddr, strictAddr, simpleAddr, far netip.Addr
	nodeLocal                                      []netip.Addr
}

func newWorld(t *testing.T, ipv6 bool) *world {
	t.Helper()
	w := &world{ipv6: ipv6, node: nstest.New(t), vpc: nstest.New(t), strict: nstest.New(t), simple: nstest.New(t)}
	addr := func(v4, v6 string) netip.Addr {
		if ipv6 {
			return netip.MustParseAddr(v6)
		}
		return netip.MustParseAddr(v4)
	}
	w.nodeAddr, w.eniAddr = addr("10.0.0.5", "fd00::5"), addr("10.0.1.20", "fd00::1:20")
	w.strictAddr, w.simpleAddr, w.far = addr("10.0.7.7", "fd00::7:7"), addr("10.0.1.21", "fd00::1:21"), addr("10.9.9.9", "fd00:9::9")
	w.nodeLocal = []netip.Addr{addr("169.254.20.10", "fd00:ec2::23")}
	if !ipv6 {
		w.nodeLocal = append(w.nodeLocal, netip.MustParseAddr("169.254.170.23"))
	}
	for _, ns := range []*nstest.NS{w.node, w.vpc, w.strict, w.simple} {
		for _, key := range []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0", "ipv6/conf/all/accept_dad=0",
			"ipv4/conf/all/rp_filter=2", "ipv4/conf/default/rp_filter=2", "ipv4/tcp_early_demux=0", "ipv4/udp_early_demux=0", "ipv4/conf/all/src_valid_mark=1"} {
			name, value, _ := cut(key)
			write(t, ns, name, value)
		}
	}
	// The VPC's router has one address per link, and asks from no other.
	write(t, w.vpc, "ipv6/conf/default/addr_gen_mode", "1")
	w.node.Veth(t, "eth0", w.vpc, "p0")
	w.node.Veth(t, "ens6", w.vpc, "p6")
	w.node.Veth(t, "eth1", w.vpc, "p1")
	w.vlan(t, w.node, "vlan.eth.7", "eth1")
	w.vlan(t, w.vpc, "p1.7", "p1")
	gateway := addr("10.0.0.1", RouterIPv6.String())
	w.address(t, w.node, "eth0", w.nodeAddr)
	w.address(t, w.node, "ens6", w.eniAddr)
	w.address(t, w.vpc, "lo", w.far)
	for _, link := range []string{"p0", "p6", "p1.7"} {
		w.address(t, w.vpc, link, gateway)
	}
	w.route(t, w.vpc, "p0", w.nodeAddr, netip.Addr{}, 0)
	w.route(t, w.vpc, "p6", w.eniAddr, netip.Addr{}, 0)
	w.route(t, w.vpc, "p6", w.simpleAddr, w.eniAddr, 0) // EC2 knows whose it is and asks nobody
	w.route(t, w.vpc, "p1.7", w.strictAddr, netip.Addr{}, 0)
	w.neighbour(t, w.vpc, "p1.7", w.strictAddr, w.node, "vlan.eth.7") // likewise
	w.route(t, w.node, "eth0", gateway, netip.Addr{}, MainTable)
	w.route(t, w.node, "eth0", netip.Addr{}, gateway, MainTable)

	w.pod(t, w.strict, "vlan0000000000a", w.strictAddr, StrictPodsTable)
	w.pod(t, w.simple, "eni0000000000b", w.simpleAddr, PodsTable)
	w.route(t, w.node, "vlan0000000000a", w.strictAddr, netip.Addr{}, 107)
	w.route(t, w.node, "vlan.eth.7", gateway, netip.Addr{}, 107)
	w.route(t, w.node, "vlan.eth.7", netip.Addr{}, gateway, 107)
	for _, link := range []string{"vlan.eth.7", "vlan0000000000a"} {
		rule := netlink.NewRule()
		rule.Family, rule.Priority, rule.Table, rule.IifName = inet(ipv6), StrictPriority, 107, link
		if err := w.node.Handle.RuleAdd(rule); err != nil {
			t.Fatal(err)
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "nodelocaldns"
	if err := w.node.Handle.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	for _, a := range w.nodeLocal {
		w.address(t, w.node, "nodelocaldns", a)
		w.d.NodeLocal = append(w.d.NodeLocal, netip.PrefixFrom(a, a.BitLen()))
	}
	w.k = open(t, w.node)
	w.d.IPv6, w.d.LocalBehindPods, w.d.VethPrefix = ipv6, true, "eni"
	w.d.ENIs = []ENI{
		{Device: 0, LinkIndex: w.node.Link(t, "eth0").Attrs().Index, Primary: w.nodeAddr, Gateway: gateway},
		{Device: 1, LinkIndex: w.node.Link(t, "ens6").Attrs().Index, Primary: w.eniAddr, Gateway: gateway,
			Prefixes: []netip.Prefix{netip.PrefixFrom(w.simpleAddr, w.simpleAddr.BitLen())}},
	}
	if r := reconcile(t, w.k, w.d); r.Marks != nil {
		t.Fatal(r.Marks)
	}
	for _, a := range []netip.Addr{w.nodeAddr, w.far, w.strictAddr, w.simpleAddr} {
		w.echo(t, w.owner(a), a)
	}
	for _, a := range w.nodeLocal {
		w.echo(t, w.node, a)
	}
	return w
}

func cut(s string) (key, value string, ok bool) {
	for i := range s {
		if s[i] == '=' {
			return s[:i], s[i+1:], true
		}
	}
	return s, "", false
}

func (w *world) owner(a netip.Addr) *nstest.NS {
	switch a {
	case w.strictAddr:
		return w.strict
	case w.simpleAddr:
		return w.simple
	case w.far:
		return w.vpc
	}
	return w.node
}

func (w *world) vlan(t *testing.T, ns *nstest.NS, name, parent string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = name, ns.Link(t, parent).Attrs().Index
	if err := ns.Handle.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: 7, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		t.Fatal(err)
	}
	ns.Up(t, name)
}

func (w *world) address(t *testing.T, ns *nstest.NS, link string, a netip.Addr) {
	t.Helper()
	err := ns.Handle.AddrAdd(ns.Link(t, link), &netlink.Addr{
		IPNet: ipNet(netip.PrefixFrom(a, a.BitLen())), Flags: unix.IFA_F_NODAD | unix.IFA_F_NOPREFIXROUTE,
	})
	if err != nil {
		t.Fatalf("%s on %s: %v", a, link, err)
	}
}

// route adds a route; without dst the default one.
func (w *world) route(t *testing.T, ns *nstest.NS, link string, dst, gateway netip.Addr, table int) {
	t.Helper()
	r := netlink.Route{LinkIndex: ns.Link(t, link).Attrs().Index, Table: table, Dst: ipNet(w.d.everything()), Scope: netlink.SCOPE_LINK}
	if w.ipv6 {
		r.Dst = ipNet(Desired{IPv6: true}.everything())
	}
	if dst.IsValid() {
		r.Dst = ipNet(netip.PrefixFrom(dst, dst.BitLen()))
	}
	if gateway.IsValid() {
		r.Gw, r.Scope, r.Flags = gateway.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	ns.Route(t, r)
}

func (w *world) neighbour(t *testing.T, ns *nstest.NS, link string, a netip.Addr, of *nstest.NS, ofLink string) {
	t.Helper()
	err := ns.Handle.NeighSet(&netlink.Neigh{LinkIndex: ns.Link(t, link).Attrs().Index, Family: inet(w.ipv6), State: netlink.NUD_PERMANENT,
		IP: a.AsSlice(), HardwareAddr: of.Link(t, ofLink).Attrs().HardwareAddr})
	if err != nil {
		t.Fatal(err)
	}
}

func (w *world) pod(t *testing.T, ns *nstest.NS, veth string, a netip.Addr, table int) {
	t.Helper()
	gateway := netip.MustParseAddr("169.254.1.1")
	if w.ipv6 {
		gateway = netip.MustParseAddr("fe80::1")
	}
	w.node.Veth(t, veth, ns, "eth0")
	w.address(t, ns, "eth0", a)
	w.neighbour(t, ns, "eth0", gateway, w.node, veth)
	w.route(t, ns, "eth0", gateway, netip.Addr{}, 0)
	w.route(t, ns, "eth0", netip.Addr{}, gateway, 0)
	w.neighbour(t, w.node, veth, a, ns, "eth0")
	w.route(t, w.node, veth, a, netip.Addr{}, table)
}

const (
	echoPort = 7777
	patience = 3 * time.Second
)

// echo answers at the address by UDP, and by TCP with a closed connection.
func (w *world) echo(t *testing.T, ns *nstest.NS, a netip.Addr) {
	t.Helper()
	ns.Do(t, func() error {
		at := netip.AddrPortFrom(a, echoPort)
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at))
		if err != nil {
			return err
		}
		t.Cleanup(func() { _ = errors.Join(udp.Close(), tcp.Close()) })
		go func() {
			for b := make([]byte, 64); ; {
				n, from, err := udp.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				_, _ = udp.WriteToUDPAddrPort(b[:n], from)
			}
		}()
		go func() {
			for {
				c, err := tcp.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
		return nil
	})
}

// exchanges are more than what a link may see of neighbour discovery meanwhile.
const exchanges = 20

// ask sends datagrams to an address and wants each back.
func (w *world) ask(from *nstest.NS, to netip.Addr) error {
	return from.Try(func() error {
		c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, echoPort)))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		for range exchanges {
			if _, err := c.Write([]byte("hello")); err != nil {
				return err
			}
			if _, err := c.Read(make([]byte, 64)); err != nil {
				return err
			}
		}
		return nil
	})
}

// seen counts packets on a link of the VPC's side, in each direction.
func (w *world) seen(t *testing.T, link string) (fromNode, toNode uint64) {
	t.Helper()
	s := w.vpc.Link(t, link).Attrs().Statistics
	return s.RxPackets, s.TxPackets
}

// wantWay asks, and looks which links of the node the packets took: some of eth0, ens6 and the VLAN, or none.
func (w *world) wantWay(t *testing.T, what string, from *nstest.NS, to netip.Addr, ways ...string) {
	t.Helper()
	links := map[string]string{"eth0": "p0", "ens6": "p6", "vlan": "p1.7"}
	before := map[string][2]uint64{}
	for way, link := range links {
		out, in := w.seen(t, link)
		before[way] = [2]uint64{out, in}
	}
	if err := w.ask(from, to); err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	for way, link := range links {
		out, in := w.seen(t, link)
		out, in = out-before[way][0], in-before[way][1]
		if passed := max(out, in) >= exchanges; passed != slices.Contains(ways, way) {
			t.Errorf("%s: %s saw %d packets out and %d in, wanted the way by %v", what, way, out, in, ways)
		}
	}
}

// warm lets every link learn its neighbours, so that the counts are of what is asked.
func (w *world) warm(t *testing.T) {
	t.Helper()
	for _, p := range []struct {
		from *nstest.NS
		to   netip.Addr
	}{{w.node, w.far}, {w.simple, w.far}, {w.strict, w.far}, {w.strict, w.nodeAddr}, {w.simple, w.nodeAddr}, {w.simple, w.strictAddr}} {
		if err := w.ask(p.from, p.to); err != nil {
			t.Errorf("to %s: %v", p.to, err)
		}
	}
}

func TestEachPacketTakesTheWayOfItsSecurityGroups(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newWorld(t, isIPv6(family))
			w.warm(t)
			for round, prepare := range []func(){
				func() {},
				func() { // what anyone's `nft flush ruleset` does; nobody mends it here
					conn, err := nftables.New(nftables.WithNetNSFd(w.node.FD()))
					if err != nil {
						t.Fatal(err)
					}
					conn.FlushRuleset()
					if err := conn.Flush(); err != nil {
						t.Fatal(err)
					}
				},
			} {
				prepare()
				say := func(what string) string { return fmt.Sprintf("%s (round %d)", what, round) }
				for _, a := range w.nodeLocal {
					w.wantWay(t, say("P32, P33: strict pod to node-local "+a.String()), w.strict, a)
				}
				w.wantWay(t, say("strict pod to its node"), w.strict, w.nodeAddr, "vlan", "eth0")
				w.wantWay(t, say("strict pod to the far"), w.strict, w.far, "vlan")
				w.wantWay(t, say("the node to a strict pod"), w.node, w.strictAddr, "eth0", "vlan")
				w.wantWay(t, say("the node to a regular pod"), w.node, w.simpleAddr)
				w.wantWay(t, say("a regular pod to its node"), w.simple, w.nodeAddr)
				if round > 0 {
					continue // without marks a regular pod of a secondary ENI leaves by the wrong one, until it is mended
				}
				w.wantWay(t, say("strict pod to a regular pod"), w.strict, w.simpleAddr, "vlan", "ens6")
				w.wantWay(t, say("regular pod to a strict pod"), w.simple, w.strictAddr, "ens6", "vlan")
				w.wantWay(t, say("regular pod to the far"), w.simple, w.far, "ens6")
			}
			for _, r := range w.k.actual(t, w.d).Rules {
				if r.From == netip.PrefixFrom(w.simpleAddr, w.simpleAddr.BitLen()) {
					t.Errorf("the regular pod has a rule of its own: %v", r)
				}
			}
			reconcile(t, w.k, w.d)
			w.wantWay(t, "regular pod to the far, mended", w.simple, w.far, "ens6")
		})
	}
}

func TestOtherDestinationsOfTheSameNetworkAreNotLeftToTheNode(t *testing.T) {
	w := newWorld(t, false)
	other := netip.MustParseAddr("169.254.20.11")
	w.address(t, w.node, "nodelocaldns", other)
	w.echo(t, w.node, other)
	out, _ := w.seen(t, "p1.7")
	if err := w.ask(w.strict, other); err == nil {
		t.Error("an address of the node that is not on the list was reached past the security groups")
	}
	if after, _ := w.seen(t, "p1.7"); after == out {
		t.Error("what was sent to it did not leave by the VLAN link")
	}
}
