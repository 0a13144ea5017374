package hostnet

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// forgetNeighbours drops what the kernel has learned of the link-layer addresses of these. An address that a branch ENI gives
// back is another one's soon, with another MAC address: for up to a minute the node's packets to it would go to the one that
// is gone, as an entry that was confirmed lately is believed. What was set by hand stays.
func (k *Kernel) forgetNeighbours(addresses []netip.Addr) error {
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		if !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Is6() == (family == unix.AF_INET6) }) {
			continue
		}
		known, err := rtnl.Dump(func() ([]netlink.Neigh, error) { return k.h.NeighList(0, family) })
		if err != nil {
			errs = append(errs, fmt.Errorf("list neighbours: %w", err))
			continue
		}
		for _, n := range known {
			address, _ := netip.AddrFromSlice(n.IP)
			if n.State&(netlink.NUD_PERMANENT|netlink.NUD_NOARP) != 0 || !slices.Contains(addresses, address.Unmap()) {
				continue
			}
			if err := k.h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				errs = append(errs, fmt.Errorf("delete what is known of neighbour %s on link %d: %w", address, n.LinkIndex, err))
			}
		}
	}
	return errors.Join(errs...)
}
