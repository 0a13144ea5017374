//go:build kernel

package hostnet

import (
	"net"
	"net/netip"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestP7AReusedAddressInheritsNoNeighbour: the node's packets to an address that another branch ENI has now don't go to the MAC
// address of the one that had it.
func TestP7AReusedAddressInheritsNoNeighbour(t *testing.T) {
	host := nstest.New(t)
	host.Do(t, func() error {
		h, err := netlink.NewHandle()
		if err != nil {
			return err
		}
		defer h.Close()
		link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Name: "eth0", MTU: 9001, Flags: net.FlagUp}}
		if err := h.LinkAdd(link); err != nil {
			return err
		}
		if err := h.LinkSetUp(link); err != nil {
			return err
		}
		mac := net.HardwareAddr{0x06, 0, 0, 0, 0, 1}
		add := func(ip string, state int) {
			n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: state, IP: net.ParseIP(ip), HardwareAddr: mac, Family: unix.AF_INET}
			if n.IP.To4() == nil {
				n.Family = unix.AF_INET6
			}
			if err := h.NeighSet(n); err != nil {
				t.Fatalf("%s: %v", ip, err)
			}
		}
		for _, ip := range []string{"192.168.0.29", "192.168.0.30", "2001:db8::29", "2001:db8::30"} {
			add(ip, netlink.NUD_REACHABLE)
		}
		add("192.168.0.31", netlink.NUD_PERMANENT)
		k, err := NewKernel()
		if err != nil {
			return err
		}
		defer k.Close()
		reused := []netip.Addr{netip.MustParseAddr("192.168.0.29"), netip.MustParseAddr("2001:db8::29"), netip.MustParseAddr("192.168.0.31")}
		if _, err := k.Forget(t.Context(), reused); err != nil {
			return err
		}
		var left []string
		for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
			known, err := h.NeighList(link.Attrs().Index, family)
			if err != nil {
				return err
			}
			for _, n := range known {
				if !n.IP.IsMulticast() {
					left = append(left, n.IP.String())
				}
			}
		}
		slices.Sort(left)
		if want := []string{"192.168.0.30", "192.168.0.31", "2001:db8::30"}; !slices.Equal(left, want) {
			t.Errorf("known are %q, want %q", left, want)
		}
		return nil
	})
}
