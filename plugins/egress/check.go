package egress

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// errDiffers is wrapped by the first difference that CHECK finds.
var errDiffers = errors.New("the pod's egress is not as ADD made it")

// check compares the kernel with what wire made of w, and names the first difference.
func (k *kernel) check(w Wiring) error {
	host, err := k.up(k.host, w.Host)
	if err != nil {
		return err
	}
	if a := host.Attrs(); a.Alias != w.Owner.Mark() {
		return fmt.Errorf("%w: %s carries the ifalias %q", errDiffers, w.Host, a.Alias)
	}
	pod, err := k.up(k.pod, w.Pod)
	if err != nil {
		return fmt.Errorf("in the pod: %w", err)
	}
	if host.Attrs().ParentIndex != pod.Attrs().Index {
		return fmt.Errorf("%w: %s is not the other end of %s", errDiffers, w.Pod, w.Host)
	}
	addrs, err := dump(func() ([]netlink.Addr, error) { return k.pod.AddrList(pod, w.Family.number()) })
	if err != nil {
		return fmt.Errorf("list the addresses of %s in the pod: %w", w.Pod, err)
	}
	found := false
	for _, a := range addrs {
		found = found || addrOf(a.IP) == w.Address
	}
	if !found {
		return fmt.Errorf("%w: %s in the pod lacks the address %s", errDiffers, w.Pod, w.Address)
	}
	single := netip.PrefixFrom(w.Address, w.Address.BitLen())
	for _, r := range []struct {
		handle *netlink.Handle
		link   netlink.Link
		dst    netip.Prefix
		gw     netip.Addr
	}{{k.pod, pod, w.Family.Default(), w.Gateway}, {k.host, host, single, netip.Addr{}}} {
		if err := checkRoute(r.handle, w.Family, r.link, r.dst, r.gw); err != nil {
			return err
		}
	}
	for _, n := range []struct {
		handle *netlink.Handle
		link   netlink.Link
		at     netip.Addr
		mac    net.HardwareAddr
	}{{k.pod, pod, w.Gateway, w.HostMAC}, {k.host, host, w.Address, w.PodMAC}} {
		if err := checkNeighbour(n.handle, w.Family, n.link, n.at, n.mac); err != nil {
			return err
		}
	}
	return nil
}

func (k *kernel) up(h *netlink.Handle, name string) (netlink.Link, error) {
	l, err := h.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	switch {
	case errors.As(err, &notFound):
		return nil, fmt.Errorf("%w: there is no link %s", errDiffers, name)
	case err != nil:
		return nil, fmt.Errorf("look at link %s: %w", name, err)
	case l.Attrs().Flags&net.FlagUp == 0:
		return nil, fmt.Errorf("%w: link %s is down", errDiffers, name)
	}
	return l, nil
}

func checkRoute(h *netlink.Handle, f Family, l netlink.Link, dst netip.Prefix, gateway netip.Addr) error {
	list, err := dump(func() ([]netlink.Route, error) { return h.RouteList(l, f.number()) })
	if err != nil {
		return fmt.Errorf("list the routes by %s: %w", l.Attrs().Name, err)
	}
	for _, r := range list {
		to := f.Default()
		if r.Dst != nil {
			ones, _ := r.Dst.Mask.Size()
			to = netip.PrefixFrom(addrOf(r.Dst.IP), ones)
		}
		if to == dst && addrOf(r.Gw) == gateway {
			return nil
		}
	}
	return fmt.Errorf("%w: there is no route to %s via %v by %s", errDiffers, dst, gateway, l.Attrs().Name)
}

func checkNeighbour(h *netlink.Handle, f Family, l netlink.Link, at netip.Addr, mac net.HardwareAddr) error {
	list, err := dump(func() ([]netlink.Neigh, error) { return h.NeighList(l.Attrs().Index, f.number()) })
	if err != nil {
		return fmt.Errorf("list the neighbours on %s: %w", l.Attrs().Name, err)
	}
	for _, n := range list {
		if addrOf(n.IP) == at && n.HardwareAddr.String() == mac.String() && n.State&netlink.NUD_PERMANENT != 0 {
			return nil
		}
	}
	return fmt.Errorf("%w: %s has no permanent neighbour entry of %s for %s", errDiffers, l.Attrs().Name, mac, at)
}
