//go:build kernel

package hostnet

import (
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// natWorld is a node with a primary ENI (eth0), a secondary one (ens6) and a VLAN link of a standard-mode branch pod, with a
// pod on each. Behind all of them is the VPC with what lies beyond it. Like EC2 it drops what leaves by an ENI that doesn't
// own its source.
type natWorld struct {
	*world
	pods map[string]*nstest.NS
	addr map[string]netip.Addr // of pods, of the node and of who is asked, by name
	all  netip.Prefix          // the VPC
}

const (
	onPrimary   = "regular pod of the primary ENI"
	onSecondary = "regular pod of a secondary ENI"
	onBranch    = "branch pod in standard mode"
	inVPC       = "a database"
	outsideVPC  = "the Internet"
	excluded    = "an excluded network"
	external    = "an external service"
	clusterIP   = "a ClusterIP"

	tellPort = 8080
)

var podNames = []string{onPrimary, onSecondary, onBranch}

func newNATWorld(t *testing.T, ipv6 bool) *natWorld {
	t.Helper()
	w := &natWorld{world: &world{ipv6: ipv6, node: nstest.New(t), vpc: nstest.New(t)}, pods: map[string]*nstest.NS{}, addr: map[string]netip.Addr{}}
	choose := func(v4, v6 string) netip.Addr {
		if ipv6 {
			return netip.MustParseAddr(v6)
		}
		return netip.MustParseAddr(v4)
	}
	gateway := choose("10.0.0.1", RouterIPv6.String())
	w.nodeAddr, w.eniAddr, w.all = choose("10.0.0.5", "fd00::5"), choose("10.0.1.20", "fd00::1:20"), netip.MustParsePrefix("10.0.0.0/16")
	if ipv6 {
		w.all = netip.MustParsePrefix("fd00::/64")
	}
	maps.Copy(w.addr, map[string]netip.Addr{
		onPrimary: choose("10.0.0.21", "fd00::21"), onSecondary: choose("10.0.1.21", "fd00::1:21"), onBranch: choose("10.0.7.7", "fd00::7:7"),
		inVPC: choose("10.0.9.9", "fd00::9:9"), outsideVPC: choose("203.0.113.9", "2600::9"),
		excluded: choose("198.51.100.9", "2600:1::9"), external: choose("192.0.2.9", "2600:2::9"), clusterIP: choose("172.20.0.10", "fdcc::10"),
	})
	for _, name := range podNames {
		w.pods[name] = nstest.New(t)
	}
	for _, ns := range append(slices.Collect(maps.Values(w.pods)), w.node, w.vpc) {
		for _, key := range []string{"ipv4/ip_forward=1", "ipv6/conf/all/forwarding=1", "ipv6/conf/default/accept_dad=0", "ipv6/conf/all/accept_dad=0",
			"ipv4/conf/all/rp_filter=2", "ipv4/conf/default/rp_filter=2", "ipv4/conf/all/src_valid_mark=1"} {
			name, value, _ := cut(key)
			write(t, ns, name, value)
		}
	}
	write(t, w.vpc, "ipv6/conf/default/addr_gen_mode", "1")
	// The primary ENI is the first link, as on instances: what is masqueraded towards a link without an address, as kube-proxy
	// does it towards pods, gets the first link's.
	for _, link := range [][2]string{{"eth0", "p0"}, {"ens6", "p6"}, {"vlan.eth.7", "p7"}} {
		w.node.Veth(t, link[0], w.vpc, link[1])
		w.address(t, w.vpc, link[1], gateway)
	}
	w.address(t, w.node, "eth0", w.nodeAddr)
	w.address(t, w.node, "ens6", w.eniAddr)
	for _, name := range []string{inVPC, outsideVPC, excluded, external} {
		w.address(t, w.vpc, "lo", w.addr[name])
		w.tell(t, w.vpc, w.addr[name])
	}
	owners := map[string]struct {
		link, port, veth string
		table            int
	}{
		onPrimary:   {"eth0", "p0", "eni0000000000a", PodsTable},
		onSecondary: {"ens6", "p6", "eni0000000000b", PodsTable},
		onBranch:    {"vlan.eth.7", "p7", "eni0000000000c", PodsTable},
	}
	for name, o := range owners {
		w.pod(t, w.pods[name], o.veth, w.addr[name], o.table)
		w.route(t, w.vpc, o.port, w.addr[name], netip.Addr{}, 0)
		w.neighbour(t, w.vpc, o.port, w.addr[name], w.node, o.link) // EC2 knows whose it is and asks nobody
		w.tell(t, w.pods[name], w.addr[name])
	}
	w.route(t, w.vpc, "p0", w.nodeAddr, netip.Addr{}, 0)
	w.route(t, w.vpc, "p6", w.eniAddr, netip.Addr{}, 0)
	for link, table := range map[string]int{"eth0": MainTable, "vlan.eth.7": 107} {
		w.route(t, w.node, link, gateway, netip.Addr{}, table)
		w.route(t, w.node, link, netip.Addr{}, gateway, table)
	}
	// What aws-cni makes for a standard-mode pod.
	if err := w.node.Handle.RuleAdd(toKernel(Rule{Priority: MarkPriority + 1, Iif: owners[onBranch].veth, Table: 107}, ipv6)); err != nil {
		t.Fatal(err)
	}
	w.checkSources(t, map[string][]netip.Addr{"p0": {w.nodeAddr, w.addr[onPrimary]}, "p6": {w.eniAddr, w.addr[onSecondary]}, "p7": {w.addr[onBranch]}})
	w.k = open(t, w.node)
	single := func(name string) []netip.Prefix {
		return []netip.Prefix{netip.PrefixFrom(w.addr[name], w.addr[name].BitLen())}
	}
	w.d = Desired{IPv6: ipv6, VethPrefix: "eni", ENIs: []ENI{
		{Device: 0, LinkIndex: w.node.Link(t, "eth0").Attrs().Index, Primary: w.nodeAddr, Gateway: gateway, Prefixes: single(onPrimary)},
		{Device: 1, LinkIndex: w.node.Link(t, "ens6").Attrs().Index, Primary: w.eniAddr, Gateway: gateway, Prefixes: single(onSecondary)},
	}}
	return w
}

func (w *natWorld) nft(t *testing.T, ns *nstest.NS, f func(*nftables.Conn)) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	f(conn)
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
}

// checkSources drops, behind each link, what comes from an address that is not the link's, neighbour discovery aside.
func (w *natWorld) checkSources(t *testing.T, owned map[string][]netip.Addr) {
	t.Helper()
	w.nft(t, w.vpc, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "ec2", Family: familyOf(w.ipv6)})
		chain := c.AddChain(&nftables.Chain{Name: "check", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw})
		for _, port := range slices.Sorted(maps.Keys(owned)) {
			from := parts{iifname(), &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte(port + "\x00")}}
			for _, a := range owned[port] {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: concat(from, sourceIn(netip.PrefixFrom(a, a.BitLen())), ret())})
			}
			if w.ipv6 {
				c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: concat(from, sourceIn(netip.MustParsePrefix("fe80::/10")), ret())})
			}
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: concat(from, parts{verdict(expr.VerdictDrop)})})
		}
	})
}

// Ports of the node: the pod's name and whether the node speaks for the caller (externalTrafficPolicy Cluster).
func (w *natWorld) nodePort(pod string, cluster bool) uint16 {
	port := uint16(30080 + 2*slices.Index(podNames, pod))
	if cluster {
		port++
	}
	return port
}

// kubeProxy makes what kube-proxy has for Services of NodePort with both policies, and for one with a ClusterIP. A hostPort
// is, for what comes from elsewhere, what policy Local is.
func (w *natWorld) kubeProxy(t *testing.T) {
	t.Helper()
	const masquerade = 0x4000
	dnat := func(to netip.Addr) parts {
		return parts{
			&expr.Immediate{Register: 1, Data: to.AsSlice()}, &expr.Immediate{Register: 2, Data: []byte{tellPort >> 8, tellPort & 0xff}},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(familyOf(w.ipv6)), RegAddrMin: 1, RegProtoMin: 2, Specified: true},
		}
	}
	if w.ipv6 { // a register of 4 bytes is behind the 16 of the address
		v4 := dnat
		dnat = func(to netip.Addr) parts {
			p := v4(to)
			p[1].(*expr.Immediate).Register, p[2].(*expr.NAT).RegProtoMin = 2, 2
			return p
		}
	}
	tcp := func(port uint16) parts {
		return parts{
			&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{byte(port >> 8), byte(port)}},
		}
	}
	w.nft(t, w.node, func(c *nftables.Conn) {
		table := c.AddTable(&nftables.Table{Name: "kube-proxy", Family: familyOf(w.ipv6)})
		pre := c.AddChain(&nftables.Chain{Name: "nat-prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		post := c.AddChain(&nftables.Chain{Name: "nat-postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		for _, pod := range podNames {
			c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: concat(tcp(w.nodePort(pod, false)), dnat(w.addr[pod]))})
			c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: concat(tcp(w.nodePort(pod, true)), setMark(masquerade, masquerade), dnat(w.addr[pod]))})
		}
		service := w.addr[clusterIP]
		c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: concat(destinationIn(netip.PrefixFrom(service, service.BitLen())), dnat(w.addr[inVPC]))})
		c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: concat(marked(masquerade, true), parts{&expr.Masq{FullyRandom: true}})})
	})
}

// kubeProxyIptables makes the NodePorts of kubeProxy, of IPv4, as kube-proxy's iptables mode does.
func (w *natWorld) kubeProxyIptables(t *testing.T) {
	t.Helper()
	const tool = "iptables-nft"
	iptables := func(args string) {
		w.node.Do(t, func() error {
			out, err := exec.Command(tool, append([]string{"-w", "-t", "nat"}, strings.Fields(args)...)...).CombinedOutput()
			if err != nil {
				return fmt.Errorf("%s %s: %w: %s (run these tests by go run ./test/kernel ./ipamd/hostnet)", tool, args, err, out)
			}
			return nil
		})
	}
	for _, pod := range podNames {
		for _, cluster := range []bool{false, true} {
			from := fmt.Sprintf("-A PREROUTING -p tcp --dport %d -m addrtype --dst-type LOCAL ", w.nodePort(pod, cluster))
			if cluster {
				iptables(from + "-j MARK --or-mark 0x4000")
			}
			iptables(from + "-j DNAT --to-destination " + netip.AddrPortFrom(w.addr[pod], tellPort).String())
		}
	}
	iptables("-A POSTROUTING -m mark --mark 0x4000/0x4000 -j MASQUERADE --random-fully")
}

// tell has who connects to an address told from where that was seen.
func (w *natWorld) tell(t *testing.T, ns *nstest.NS, a netip.Addr) {
	t.Helper()
	var l *net.TCPListener
	ns.Do(t, func() (err error) {
		l, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, tellPort)))
		return err
	})
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = fmt.Fprintln(c, c.RemoteAddr())
			_ = c.Close()
		}
	}()
}

// lostAfter is how long what gets nowhere is waited for.
const lostAfter = 600 * time.Millisecond

// seenAs connects, from an address and port or any, and returns as whom the other side saw it.
func (w *natWorld) seenAs(from *nstest.NS, source netip.AddrPort, to netip.Addr, port uint16, timeout time.Duration) (seen netip.AddrPort, err error) {
	err = from.Try(func() error {
		d := net.Dialer{Timeout: timeout}
		if source.IsValid() {
			d.LocalAddr = net.TCPAddrFromAddrPort(source)
		}
		c, err := d.Dial("tcp", net.JoinHostPort(to.String(), strconv.Itoa(int(port))))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
			return err
		}
		var text string
		if _, err := fmt.Fscanln(c, &text); err != nil {
			return err
		}
		seen, err = netip.ParseAddrPort(text)
		return err
	})
	return seen, err
}

// wantSeen wants a connection to be seen as coming from one of the addresses, or, without any, not to come about.
func (w *natWorld) wantSeen(t *testing.T, what string, from *nstest.NS, source, to netip.Addr, port uint16, want ...netip.Addr) {
	t.Helper()
	timeout, at := patience, netip.AddrPort{}
	if len(want) == 0 {
		timeout = lostAfter
	}
	if source.IsValid() {
		at = netip.AddrPortFrom(source, 0)
	}
	seen, err := w.seenAs(from, at, to, port, timeout)
	switch {
	case len(want) > 0 && (err != nil || !slices.Contains(want, seen.Addr())):
		t.Errorf("%s: seen as %v, %v; want %s", what, seen, err, want)
	case len(want) == 0 && err == nil:
		t.Errorf("%s: seen as %v; want nothing to come of it", what, seen)
	}
}

func (w *natWorld) set(t *testing.T, n NAT) {
	t.Helper()
	w.d.NAT = n
	if r := reconcile(t, w.k, w.d); r.NAT != nil || r.Marks != nil {
		t.Fatal(r.NAT, r.Marks)
	}
	if r := reconcile(t, w.k, w.d); len(r.Ops) > 0 {
		t.Fatalf("a second time: %v", r.Ops)
	}
}

// on is what a stock manifest asks for.
func (w *natWorld) on() NAT {
	return NAT{Source: true, NodePort: true, ConnMark: 0x80, VPC: []netip.Prefix{w.all}, Excluded: []netip.Prefix{netip.PrefixFrom(w.addr[excluded], w.addr[excluded].BitLen()-8)}}
}

func (w *natWorld) tables(t *testing.T) (names []string) {
	t.Helper()
	conn, err := nftables.New(nftables.WithNetNSFd(w.node.FD()))
	if err != nil {
		t.Fatal(err)
	}
	list, err := conn.ListTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range list {
		names = append(names, table.Name)
	}
	return names
}
