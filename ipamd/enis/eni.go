package enis

import (
	"net/netip"
	"slices"
)

// ENI is an attached interface and what is known of it.
type ENI struct {
	ID           string
	MAC          string
	Device, Card int
	SubnetID     string
	VPCID        string
	Subnet       netip.Prefix
	VPC          []netip.Prefix // the VPC's own CIDRs, of the pods' family
	Groups       []string
	// Addresses holds the primary address first. Addresses and prefixes are of the pods' family.
	Addresses []netip.Addr
	// Prefixes are all there for pods.
	Prefixes []netip.Prefix
	// Trunk carries branch ENIs and no regular pods.
	Trunk bool
	// Unmanaged is set where the agent keeps its hands off: tagged so, on a further network card where those are not used, or
	// not yet known.
	Unmanaged bool
	// Made is set where the agent made it, so that it may delete it.
	Made bool
	// LinkIndex is 0 while the link is not there; LinkUp says that it is up and set up.
	LinkIndex int
	LinkUp    bool
}

// Primary is the instance's first interface.
func (e ENI) Primary() bool { return e.Device == 0 && e.Card == 0 }

// PrimaryAddress is the ENI's first address of the pods' family; not valid where it has none.
func (e ENI) PrimaryAddress() netip.Addr {
	if len(e.Addresses) == 0 {
		return netip.Addr{}
	}
	return e.Addresses[0]
}

// Gateway is the subnet's router.
func (e ENI) Gateway() netip.Addr { return e.Subnet.Masked().Addr().Next() }

// Usable says whether regular pods may have its secondary addresses.
func (e ENI) Usable() bool { return !e.Trunk && !e.Unmanaged && e.LinkIndex != 0 && e.LinkUp }

// Units returns what pods may have addresses of, as EC2 gives it in one piece: the secondary addresses, as prefixes of one
// address each, and then the prefixes.
func (e ENI) Units() []netip.Prefix {
	out := make([]netip.Prefix, 0, len(e.Addresses)+len(e.Prefixes))
	for _, a := range e.Addresses[min(1, len(e.Addresses)):] {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	return append(out, e.Prefixes...)
}

// Owns says whether the address is one of the ENI's.
func (e ENI) Owns(a netip.Addr) bool {
	return slices.Contains(e.Addresses, a) || slices.ContainsFunc(e.Prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// add takes units in, without takes them out; both leave the slices that they were given alone.
func (e ENI) add(units []netip.Prefix) ENI {
	for _, u := range units {
		switch {
		case slices.Contains(e.Prefixes, u) || u.IsSingleIP() && slices.Contains(e.Addresses, u.Addr()):
		case u.IsSingleIP():
			e.Addresses = append(slices.Clip(e.Addresses), u.Addr())
		default:
			e.Prefixes = append(slices.Clip(e.Prefixes), u)
		}
	}
	return e
}

func (e ENI) without(gone func(netip.Prefix) bool) ENI {
	if len(e.Addresses) > 0 { // the primary one stays
		rest := slices.DeleteFunc(slices.Clone(e.Addresses[1:]), func(a netip.Addr) bool { return gone(netip.PrefixFrom(a, a.BitLen())) })
		e.Addresses = append(slices.Clip(e.Addresses[:1:1]), rest...)
	}
	e.Prefixes = slices.DeleteFunc(slices.Clone(e.Prefixes), gone)
	return e
}
