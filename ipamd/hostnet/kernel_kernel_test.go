//go:build kernel

package hostnet

import (
	"context"
	"net/netip"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestRoutingOfARealKernelIsReconciledBothWays works in a network namespace of its own.
func TestRoutingOfARealKernelIsReconciledBothWays(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread ends with the test, and the namespace with it
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eni1"}, PeerName: "peer"}); err != nil {
		t.Fatal(err)
	}
	for _, n := range []string{"lo", "eni1", "peer"} { // without lo there is no local table, and no gateway is valid
		l, err := netlink.LinkByName(n)
		if err != nil {
			t.Fatal(err)
		}
		if err := netlink.LinkSetUp(l); err != nil {
			t.Fatal(err)
		}
	}
	l, _ := netlink.LinkByName("eni1")
	k, err := NewKernel()
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	wantPodsOfAnyAgent(t, k, l)
	ctx := context.Background()
	eni := ENI{Device: 1, LinkIndex: l.Attrs().Index, Primary: netip.MustParseAddr("192.168.1.20"), Gateway: netip.MustParseAddr("192.168.0.1")}
	moved := eni
	moved.Gateway = netip.MustParseAddr("192.168.0.2")
	for _, d := range []Desired{{}, {LocalBehindPods: true, ENIs: []ENI{eni}}, {LocalBehindPods: true, ENIs: []ENI{moved}}, {ENIs: []ENI{eni}}, {}} {
		if _, err := k.Reconcile(ctx, d); err != nil {
			t.Fatalf("%+v: %v", d, err)
		}
		ops, err := k.Reconcile(ctx, d)
		if err != nil || len(ops) > 0 {
			t.Fatalf("%+v: a second time %v, %v", d, ops, err)
		}
		a, err := k.Actual()
		if err != nil {
			t.Fatal(err)
		}
		var local []int
		for _, r := range a.Rules {
			if r.Table == LocalTable {
				local = append(local, r.Priority)
			}
		}
		want := []int{LocalPriority}
		if d.LocalBehindPods {
			want = []int{LocalPriorityStrict}
		}
		if !slices.Equal(local, want) {
			t.Fatalf("%+v: local rules at %v, want %v", d, local, want)
		}
		if len(a.Routes) != 2*len(d.ENIs) {
			t.Fatalf("%+v: routes %+v", d, a.Routes)
		}
	}
}

// wantPodsOfAnyAgent: upstream's pods are routed by the main table.
func wantPodsOfAnyAgent(t *testing.T, k *Kernel, veth netlink.Link) {
	t.Helper()
	device, err := netlink.LinkByName("lo") // stands for any link that is no veth
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct {
		dst, gw string
		link    netlink.Link
		table   int
	}{
		{"192.168.1.30/32", "", veth, PodsTable},
		{"192.168.1.31/32", "", veth, MainTable}, // a pod of upstream's
		{"192.168.1.32/32", "192.168.1.31", veth, MainTable},
		{"192.168.2.0/24", "", veth, MainTable},
		{"192.168.1.33/32", "", device, MainTable},
	} {
		route := &netlink.Route{LinkIndex: r.link.Attrs().Index, Dst: ipNet(netip.MustParsePrefix(r.dst)), Table: r.table, Scope: netlink.SCOPE_LINK}
		if r.gw != "" {
			route.Scope, route.Gw, route.Flags = netlink.SCOPE_UNIVERSE, netip.MustParseAddr(r.gw).AsSlice(), int(netlink.FLAG_ONLINK)
		}
		if err := netlink.RouteAdd(route); err != nil {
			t.Fatalf("%s: %v", r.dst, err)
		}
		defer netlink.RouteDel(route)
	}
	got, err := k.Pods()
	want := []netip.Addr{netip.MustParseAddr("192.168.1.30"), netip.MustParseAddr("192.168.1.31")}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
}
