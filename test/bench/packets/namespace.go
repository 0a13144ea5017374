package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// namespace is a network namespace that lives until close.
type namespace struct {
	fd netns.NsHandle
	h  *netlink.Handle
}

func newNamespace() (*namespace, error) {
	n := &namespace{fd: netns.None()}
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		var err error
		n.fd, err = netns.New()
		result <- err
	}()
	if err := <-result; err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	var err error
	if n.h, err = netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE); err != nil {
		n.fd.Close()
		return nil, fmt.Errorf("open netlink in the new namespace: %w", err)
	}
	return n, n.up("lo")
}

func (n *namespace) close() {
	n.h.Close()
	n.fd.Close()
}

// do runs f on a thread of the namespace.
func (n *namespace) do(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(n.fd); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

func (n *namespace) set(keys map[string]string) error {
	return n.do(func() error {
		for key, value := range keys {
			if err := os.WriteFile("/proc/sys/net/"+key, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
}

func (n *namespace) up(name string) error {
	l, err := n.h.LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up %s: %w", name, err)
	}
	return n.h.LinkSetUp(l)
}

// veth makes a pair, both ends up, each with a permanent neighbour entry for the other's address.
func (n *namespace) veth(name string, addr netip.Addr, peer *namespace, peerName string, peerAddr netip.Addr) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace = peerName, netlink.NsFd(peer.fd)
	if err := n.h.LinkAdd(v); err != nil {
		return fmt.Errorf("make veth %s: %w", name, err)
	}
	for _, e := range []struct {
		of, other           *namespace
		name, otherName     string
		ofAddr, towardsAddr netip.Addr
	}{{n, peer, name, peerName, addr, peerAddr}, {peer, n, peerName, name, peerAddr, addr}} {
		if err := e.of.up(e.name); err != nil {
			return err
		}
		l, err := e.of.h.LinkByName(e.name)
		if err != nil {
			return err
		}
		o, err := e.other.h.LinkByName(e.otherName)
		if err != nil {
			return err
		}
		if e.ofAddr != linkGateway { // nobody has that one: it is only resolved
			if err := e.of.h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(single(e.ofAddr)), Flags: unix.IFA_F_NOPREFIXROUTE}); err != nil {
				return fmt.Errorf("add %s to %s: %w", e.ofAddr, e.name, err)
			}
		}
		if err := e.of.h.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: unix.AF_INET, State: netlink.NUD_PERMANENT,
			IP: e.towardsAddr.AsSlice(), HardwareAddr: o.Attrs().HardwareAddr}); err != nil {
			return fmt.Errorf("add neighbour %s of %s: %w", e.towardsAddr, e.name, err)
		}
	}
	return nil
}

// linkGateway is a pod's gateway: an address that is only ever resolved.
var linkGateway = netip.MustParseAddr("169.254.1.1")

// route adds a route, to everything where dst is not valid; without a gateway on link.
func (n *namespace) route(link string, dst netip.Addr, gateway netip.Addr, table int) error {
	l, err := n.h.LinkByName(link)
	if err != nil {
		return err
	}
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Table: table, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}}
	if dst.IsValid() {
		r.Dst = ipNet(single(dst))
	}
	if gateway.IsValid() {
		r.Gw, r.Scope, r.Flags = gateway.AsSlice(), netlink.SCOPE_UNIVERSE, int(netlink.FLAG_ONLINK)
	}
	if err := n.h.RouteReplace(r); err != nil {
		return fmt.Errorf("add route %s by %s to table %d: %w", r.Dst, link, table, err)
	}
	return nil
}

// rule adds an IPv4 rule; change says what it selects.
func (n *namespace) rule(priority, table int, change func(*netlink.Rule)) error {
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = unix.AF_INET, priority, table
	change(r)
	if err := n.h.RuleAdd(r); err != nil {
		return fmt.Errorf("add %v: %w", r, err)
	}
	return nil
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
