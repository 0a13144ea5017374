//go:build kernel

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestP7AReusedAddressInheritsNoConnections has a pod's address go to another pod, while the Service that the first one
// called has other endpoints by now, and so has the one that it was behind.
func TestP7AReusedAddressInheritsNoConnections(t *testing.T) {
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			t.Run("alone", func(t *testing.T) { reused(t, isIPv6(family), true, true) })
			if !isIPv6(family) { // where one address is asked for otherwise than several
				t.Run("with others", func(t *testing.T) { reused(t, false, true, false) })
				t.Run("what happens otherwise", func(t *testing.T) { reused(t, false, false, false) })
			}
		})
	}
}

func reused(t *testing.T, ipv6, forget, alone bool) {
	name := func(v4, v6 string) netip.Addr {
		if ipv6 {
			return netip.MustParseAddr(v6)
		}
		return netip.MustParseAddr(v4)
	}
	pod, other := name("10.1.0.2", "fd00:1::2"), name("10.1.1.2", "fd00:1:1::2")
	first, second := name("10.1.2.2", "fd00:1:2::2"), name("10.1.3.2", "fd00:1:3::2")
	service := name("10.96.0.1", "fd00:96::1")
	all := []netip.Addr{pod}
	if !alone {
		all = append(all, name("10.1.9.9", "fd00:1:9::9"), name("10.1.9.8", "fd00:1:9::8"))
	}
	host := nstest.New(t)
	if ipv6 {
		host.Sysctl(t, "ipv6/conf/all/forwarding", "1")
	} else {
		host.Sysctl(t, "ipv4/ip_forward", "1")
	}
	join := func(link string, a netip.Addr) *nstest.NS {
		t.Helper()
		ns := nstest.New(t)
		host.Veth(t, link, ns, "eth0")
		bits := fmt.Sprintf("/%d", a.BitLen()-8)
		host.Address(t, link, a.Prev().String()+bits)
		ns.Address(t, "eth0", a.String()+bits)
		ns.Route(t, netlink.Route{Gw: a.Prev().AsSlice()})
		return ns
	}
	old, bystander := join("pod", pod), join("other", other)
	backends := map[netip.Addr]*nstest.NS{first: join("first", first), second: join("second", second)}
	leadTo(t, host, ipv6, service, first)

	answering := func(a netip.Addr) *net.UDPConn { return listenUDP(t, backends[a], a, 53) }
	one, two := answering(first), answering(second)
	// The pod and a bystander call the Service, each from a port that they use again.
	asked := listenUDP(t, old, pod, 4000)
	wantHeard(t, asked, service, one, pod)
	beside := listenUDP(t, bystander, other, 4000)
	wantHeard(t, beside, service, one, other)
	asked.Close()

	// The Service has another endpoint, and the address another pod.
	old.Close()
	host.Do(t, func() error { return removeLink("pod") })
	next := join("pod", pod)
	leadTo(t, host, ipv6, service, second)
	k := hostKernel(t, host)
	if forget {
		var n int
		host.Do(t, func() (err error) { n, err = k.Forget(t.Context(), all); return err })
		if n != 1 {
			t.Errorf("%d connections forgotten, want the pod's", n)
		}
	}
	heir := one
	if forget {
		heir = two
	}
	wantHeard(t, listenUDP(t, next, pod, 4000), service, heir, pod)
	// Who has nothing to do with it keeps its connection.
	wantHeard(t, beside, service, one, other)

	// The other way round: the pod is the Service's endpoint, its caller goes on when another pod has the address.
	leadTo(t, host, ipv6, service, pod)
	server := listenUDP(t, next, pod, 53)
	caller := listenUDP(t, bystander, other, 5000)
	wantHeard(t, caller, service, server, other)
	leadTo(t, host, ipv6, service, second)
	if forget {
		host.Do(t, func() error { _, err := k.Forget(t.Context(), all); return err })
		server = two
	}
	wantHeard(t, caller, service, server, other)
}

func hostKernel(t *testing.T, host *nstest.NS) *Kernel {
	t.Helper()
	var k *Kernel
	host.Do(t, func() (err error) { k, err = NewKernel(); return err })
	t.Cleanup(func() { k.Close() })
	return k
}

// removeLink takes a veth away, if it has not gone with the namespace of its other end: that dies when the kernel is so far.
func removeLink(name string) error {
	l, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkDel(l)
	}
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) || errors.Is(err, unix.ENODEV) {
		return nil
	}
	return err
}

// leadTo is what kube-proxy makes of a Service with one endpoint.
func leadTo(t *testing.T, host *nstest.NS, ipv6 bool, service, endpoint netip.Addr) {
	t.Helper()
	host.Do(t, func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		table := c.AddTable(&nftables.Table{Name: "proxy", Family: familyOf(ipv6)})
		c.FlushTable(table)
		chain := c.AddChain(&nftables.Chain{
			Name: "services", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
		})
		offset, length, family := uint32(16), uint32(4), uint32(unix.NFPROTO_IPV4)
		if ipv6 {
			offset, length, family = 24, 16, unix.NFPROTO_IPV6
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: service.AsSlice()},
			&expr.Immediate{Register: 1, Data: endpoint.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: family, RegAddrMin: 1},
		}})
		return c.Flush()
	})
}

func listenUDP(t *testing.T, ns *nstest.NS, a netip.Addr, port uint16) (c *net.UDPConn) {
	t.Helper()
	ns.Do(t, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, port)))
		return err
	})
	t.Cleanup(func() { c.Close() })
	return c
}

// wantHeard sends to the Service until one of its endpoints hears it, and wants that to be this one.
func wantHeard(t *testing.T, from *net.UDPConn, service netip.Addr, by *net.UDPConn, sender netip.Addr) {
	t.Helper()
	buf := make([]byte, 64)
	word := []byte(fmt.Sprint(time.Now().UnixNano()))
	for range 50 {
		if _, err := from.WriteToUDPAddrPort(word, netip.AddrPortFrom(service, 53)); err != nil {
			t.Fatal(err)
		}
		if err := by.SetReadDeadline(time.Now().Add(100 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		n, who, err := by.ReadFromUDPAddrPort(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if string(buf[:n]) == string(word) && who.Addr() == sender {
			return
		}
	}
	t.Errorf("%s did not hear %s through the Service", by.LocalAddr(), sender)
}

func TestNothingTrackedIsNothingToForget(t *testing.T) {
	host := nstest.New(t)
	k := hostKernel(t, host)
	host.Do(t, func() error {
		n, err := k.Forget(context.Background(), []netip.Addr{netip.MustParseAddr("10.1.0.2")})
		if n != 0 {
			t.Errorf("%d forgotten", n)
		}
		return err
	})
}
