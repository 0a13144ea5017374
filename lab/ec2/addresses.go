package ec2

import (
	"net/netip"
	"slices"
)

func (c *call) addressParams() ([]netip.Addr, error) {
	var out []netip.Addr
	for _, s := range c.p.strs("PrivateIpAddress") {
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is4() {
			return nil, errf("InvalidParameterValue", "Value (%s) for parameter privateIpAddress is invalid.", s)
		}
		if slices.Contains(out, a) {
			return nil, errf("InvalidParameterValue", "Address %s is given twice.", a)
		}
		out = append(out, a)
	}
	return out, nil
}

func assignAddresses(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	want, err := c.addressParams()
	if err != nil {
		return nil, err
	}
	more, err := c.p.count("SecondaryPrivateIpAddressCount", 0)
	if err != nil {
		return nil, err
	}
	prefixes, err := c.p.count("Ipv4PrefixCount", 0)
	if err != nil {
		return nil, err
	}
	given := 0
	for _, n := range []int{len(want), more, prefixes} {
		if n > 0 {
			given++
		}
	}
	if given != 1 {
		return nil, errf("InvalidParameterCombination", "Give either addresses, or a number of addresses or of prefixes greater than zero")
	}
	if e.att != nil {
		limit := c.instances[e.att.instanceID].typ.IPv4PerInterface
		if len(e.addrs)+len(e.prefixes)+len(want)+more+prefixes > limit {
			return nil, errf("PrivateIpAddressLimitExceeded", "Number of private addresses will exceed limit. The limit of the instance type is %d addresses per interface.", limit)
		}
	}
	s := c.subnets[e.subnetID]
	for i, a := range want {
		// AllowReassignment takes an address from another ENI on AWS. Nobody here needs it, so it stays an error.
		if err := s.claim(e.id, a); err != nil {
			for _, b := range want[:i] {
				s.release(b)
			}
			return nil, err
		}
	}
	if more > 0 {
		if want, err = s.take(e.id, more); err != nil {
			return nil, err
		}
	}
	blocks, err := s.takePrefixes(e.id, prefixes)
	if err != nil {
		return nil, err
	}
	e.addrs, e.prefixes = slices.Concat(e.addrs, want), slices.Concat(e.prefixes, blocks)
	return []element{
		str("networkInterfaceId", e.id),
		list("assignedPrivateIpAddressesSet", want, func(a netip.Addr) []element { return []element{str("privateIpAddress", a.String())} }),
		list("assignedIpv4PrefixSet", blocks, prefixElements),
		flag("return", true),
	}, nil
}

func unassignAddresses(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	gone, err := c.addressParams()
	if err != nil {
		return nil, err
	}
	var blocks []netip.Prefix
	for _, v := range c.p.strs("Ipv4Prefix") {
		p, err := netip.ParsePrefix(v)
		if err != nil || !slices.Contains(e.prefixes, p) {
			return nil, errf("InvalidParameterValue", "Some of [%s] are not assigned to interface %s", v, e.id)
		}
		blocks = append(blocks, p)
	}
	if len(gone)+len(blocks) == 0 {
		return nil, missing("privateIpAddress")
	}
	for _, a := range gone {
		switch slices.Index(e.addrs, a) {
		case -1:
			return nil, errf("InvalidParameterValue", "Some of [%s] are not assigned to interface %s", a, e.id)
		case 0:
			return nil, errf("InvalidParameterValue", "The primary private address %s of interface %s cannot be unassigned", a, e.id)
		}
	}
	e.addrs = slices.DeleteFunc(slices.Clone(e.addrs), func(a netip.Addr) bool { return slices.Contains(gone, a) })
	for _, a := range gone {
		c.subnets[e.subnetID].release(a)
	}
	e.prefixes = slices.DeleteFunc(slices.Clone(e.prefixes), func(p netip.Prefix) bool { return slices.Contains(blocks, p) })
	for _, p := range blocks {
		c.subnets[e.subnetID].releasePrefix(p)
	}
	return done, nil
}
