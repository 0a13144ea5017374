//go:build kernel

package enis

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestP18AnAttachedLinkIsSeenAndSetUp uses a TAP as ENI, in a network namespace of its own.
func TestP18AnAttachedLinkIsSeenAndSetUp(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	n, err := NewNetlink()
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	seen, subscribed := make(chan struct{}, 64), make(chan struct{}, 64)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			t.Error(err)
			return
		}
		n.Watch(ctx, func() { seen <- struct{}{} }, func() { subscribed <- struct{}{} })
	}()
	<-subscribed
	<-seen
	if err := netlink.LinkAdd(&netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: "ens6"}, Mode: netlink.TUNTAP_MODE_TAP}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eniabc"}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-seen:
	case <-ctx.Done():
		t.Fatal("no event of the new link")
	}
	links, err := n.List(ctx)
	if err != nil || len(links) != 1 || links[0].Name != "ens6" || links[0].Up {
		t.Fatalf("%+v, %v", links, err)
	}
	addr := netip.MustParseAddr("192.168.1.20")
	for range 2 {
		if err := n.SetUp(ctx, links[0].Index, 9001, addr); err != nil {
			t.Fatal(err)
		}
	}
	l, err := netlink.LinkByName("ens6")
	if err != nil {
		t.Fatal(err)
	}
	addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
	if err != nil || len(addrs) != 1 || addrs[0].IPNet.String() != "192.168.1.20/32" || l.Attrs().MTU != 9001 {
		t.Fatalf("%v, MTU %d, %v", addrs, l.Attrs().MTU, err)
	}
	routes, err := netlink.RouteList(l, netlink.FAMILY_V4)
	if err != nil || slices.ContainsFunc(routes, func(r netlink.Route) bool { return r.Table == 254 }) {
		t.Fatalf("the main table got routes: %v, %v", routes, err)
	}
}
