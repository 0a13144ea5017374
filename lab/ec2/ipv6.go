package ec2

import (
	"fmt"
	"net/netip"
	"slices"
)

// subnet6 is a subnet's IPv6 half. Single addresses are of its first /80, prefixes are the others: so the two never meet,
// and one that is free again is given again as early as can be.
type subnet6 struct {
	cidr       netip.Prefix // a /64; not valid without IPv6
	used       map[netip.Addr]string
	blocks     map[netip.Prefix]string
	onCreation bool // each new ENI gets an address
}

func newSubnet6(cidr netip.Prefix) subnet6 {
	return subnet6{cidr: cidr, used: map[netip.Addr]string{}, blocks: map[netip.Prefix]string{}}
}

// block is the n-th /80 of a /64.
func (s *subnet6) block(n int) netip.Prefix {
	b := s.cidr.Addr().As16()
	b[8], b[9] = byte(n>>8), byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(b), 80)
}

// address is the n-th address of the first block.
func (s *subnet6) address(n int) netip.Addr {
	b := s.cidr.Addr().As16()
	b[14], b[15] = byte(n>>8), byte(n)
	return netip.AddrFrom16(b)
}

// want6 is what is asked for of IPv6.
type want6 struct {
	fixed           []netip.Addr
	addrs, prefixes int
}

func (w want6) none() bool { return len(w.fixed)+w.addrs+w.prefixes == 0 }

// want6 reads the parameters of a call; list is what its list of addresses is called there.
func (p *params) want6(list string) (w want6, err error) {
	for _, it := range p.items(list) {
		s := it.value
		if it.has("Ipv6Address") {
			s = it.str("Ipv6Address")
		}
		a, err := netip.ParseAddr(s)
		if err != nil || !a.Is6() || a.Is4In6() || slices.Contains(w.fixed, a) {
			return w, errf("InvalidParameterValue", "Value (%s) for parameter ipv6Addresses is invalid or given twice.", s)
		}
		w.fixed = append(w.fixed, a)
	}
	if w.addrs, err = p.count("Ipv6AddressCount", 0); err != nil {
		return w, err
	}
	if w.prefixes, err = p.count("Ipv6PrefixCount", 0); err != nil {
		return w, err
	}
	if len(w.fixed) > 0 && w.addrs > 0 {
		return w, errf("InvalidParameterCombination", "Give either IPv6 addresses or a number of them")
	}
	return w, nil
}

// take6 gives an ENI what is asked for, all of it or nothing.
func (c *call) take6(s *subnet, eniID string, w want6) (addrs []netip.Addr, prefixes []netip.Prefix, err error) {
	if s.v6.onCreation && len(w.fixed)+w.addrs == 0 {
		w.addrs = 1
	}
	if w.none() {
		return nil, nil, nil
	}
	v := &s.v6
	if !v.cidr.IsValid() {
		return nil, nil, errf("InvalidParameterValue", "The subnet '%s' has no IPv6 CIDR block", s.id)
	}
	for _, a := range w.fixed {
		if !v.block(0).Contains(a) || a.Compare(v.address(4)) < 0 {
			return nil, nil, errf("InvalidParameterValue", "Address %s is not within the range that this lab assigns single addresses of (%s).", a, v.block(0))
		}
		if v.used[a] != "" {
			return nil, nil, errf("InvalidIPAddress.InUse", "The specified address %s is already in use.", a)
		}
	}
	addrs = slices.Clone(w.fixed)
	for n := 4; len(addrs) < len(w.fixed)+w.addrs; n++ {
		if n > 0xffff {
			return nil, nil, errf("InsufficientFreeAddressesInSubnet", "There are not enough free addresses in subnet '%s' to satisfy the requested number of addresses.", s.id)
		}
		if a := v.address(n); v.used[a] == "" {
			addrs = append(addrs, a)
		}
	}
	for n := 1; len(prefixes) < w.prefixes; n++ {
		if n > 0xffff {
			return nil, nil, errf("InsufficientCidrBlocks", "The specified subnet does not have enough free cidr blocks to satisfy the request.")
		}
		if p := v.block(n); v.blocks[p] == "" {
			prefixes = append(prefixes, p)
		}
	}
	for _, a := range addrs {
		v.used[a] = eniID
	}
	for _, p := range prefixes {
		v.blocks[p] = eniID
	}
	return addrs, prefixes, nil
}

func (s *subnet) release6(addrs []netip.Addr, prefixes []netip.Prefix) {
	for _, a := range addrs {
		delete(s.v6.used, a)
	}
	for _, p := range prefixes {
		delete(s.v6.blocks, p)
	}
}

func (e *eni) firstIPv6() netip.Addr {
	if len(e.addrs6) == 0 {
		return netip.Addr{}
	}
	return e.addrs6[0]
}

func assignIPv6(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	w, err := c.p.want6("Ipv6Addresses")
	if err != nil {
		return nil, err
	}
	if w.none() || w.prefixes > 0 && len(w.fixed)+w.addrs > 0 {
		return nil, errf("InvalidParameterCombination", "Give either IPv6 addresses, or a number of addresses or of prefixes greater than zero")
	}
	if e.att != nil {
		typ := c.instances[e.att.instanceID].typ
		if w.prefixes > 0 && typ.Hypervisor != "nitro" && !typ.BareMetal {
			return nil, errf("UnsupportedOperation", "Instance type %s does not support prefixes.", typ.Name)
		}
		if len(e.addrs6)+len(e.prefixes6)+len(w.fixed)+w.addrs+w.prefixes > typ.IPv4PerInterface {
			return nil, errf("PrivateIpAddressLimitExceeded", "Number of IPv6 addresses will exceed limit. The limit of the instance type is %d addresses per interface.", typ.IPv4PerInterface)
		}
	}
	s := c.subnets[e.subnetID]
	onCreation := s.v6.onCreation
	s.v6.onCreation = false // this is none
	addrs, prefixes, err := c.take6(s, e.id, w)
	s.v6.onCreation = onCreation
	if err != nil {
		return nil, err
	}
	e.addrs6, e.prefixes6 = slices.Concat(e.addrs6, addrs), slices.Concat(e.prefixes6, prefixes)
	return []element{
		str("networkInterfaceId", e.id), texts("assignedIpv6Addresses", addrs), texts("assignedIpv6PrefixSet", prefixes),
	}, nil
}

func unassignIPv6(c *call) ([]element, error) {
	e, err := c.interfaceParam("NetworkInterfaceId")
	if err != nil {
		return nil, err
	}
	var addrs []netip.Addr
	for _, v := range c.p.strs("Ipv6Addresses") {
		a, err := netip.ParseAddr(v)
		if err != nil || !slices.Contains(e.addrs6, a) {
			return nil, errf("InvalidParameterValue", "Some of [%s] are not assigned to interface %s", v, e.id)
		}
		addrs = append(addrs, a)
	}
	var prefixes []netip.Prefix
	for _, v := range c.p.strs("Ipv6Prefix") {
		p, err := netip.ParsePrefix(v)
		if err != nil || !slices.Contains(e.prefixes6, p) {
			return nil, errf("InvalidParameterValue", "Some of [%s] are not assigned to interface %s", v, e.id)
		}
		prefixes = append(prefixes, p)
	}
	if len(addrs)+len(prefixes) == 0 {
		return nil, missing("ipv6Addresses")
	}
	e.addrs6 = slices.DeleteFunc(slices.Clone(e.addrs6), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	e.prefixes6 = slices.DeleteFunc(slices.Clone(e.prefixes6), func(p netip.Prefix) bool { return slices.Contains(prefixes, p) })
	c.subnets[e.subnetID].release6(addrs, prefixes)
	return []element{
		str("networkInterfaceId", e.id), texts("unassignedIpv6Addresses", addrs), texts("unassignedIpv6PrefixSet", prefixes),
	}, nil
}

func texts[T fmt.Stringer](name string, all []T) element {
	out := el(name)
	for _, t := range all {
		out.kids = append(out.kids, str("item", t.String()))
	}
	return out
}

func ipv6PrefixElements(p netip.Prefix) []element { return []element{str("ipv6Prefix", p.String())} }

// nextVPC6 is the IPv6 range of the next VPC that asks for one: of those for documentation (RFC 3849).
func (r *Region) nextVPC6() netip.Prefix {
	n := 0
	for _, v := range r.vpcs {
		if v.cidr6.IsValid() {
			n++
		}
	}
	return netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 4: byte(n >> 8), 5: byte(n)}), 56)
}

// subnet6 reads CreateSubnet's IPv6 CIDR; not valid where none is asked for.
func (c *call) subnet6(v *vpcState) (netip.Prefix, error) {
	s := c.p.str("Ipv6CidrBlock")
	if s == "" {
		return netip.Prefix{}, nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil || p.Bits() != 64 || p != p.Masked() || !v.cidr6.IsValid() || !v.cidr6.Contains(p.Addr()) {
		return p, errf("InvalidSubnet.Range", "The IPv6 CIDR '%s' is invalid: it has to be a /64 of the VPC's (%s).", s, v.cidr6)
	}
	for _, o := range c.subnets {
		if o.v6.cidr == p {
			return p, errf("InvalidSubnet.Conflict", "The IPv6 CIDR '%s' conflicts with another subnet", p)
		}
	}
	return p, nil
}

func modifySubnet(c *call) ([]element, error) {
	id, err := c.p.need("SubnetId")
	if err != nil {
		return nil, err
	}
	s, err := c.subnet(id)
	if err != nil {
		return nil, err
	}
	on, err := c.p.child("AssignIpv6AddressOnCreation").bool("Value", s.v6.onCreation)
	if err != nil {
		return nil, err
	}
	if on && !s.v6.cidr.IsValid() {
		return nil, errf("InvalidParameterValue", "The subnet '%s' has no IPv6 CIDR block", s.id)
	}
	s.v6.onCreation = on
	return done, nil
}

// associated6 is the IPv6 range of a VPC or subnet as descriptions show it.
func associated6(kind, id string, cidr netip.Prefix) element {
	if !cidr.IsValid() {
		return el("ipv6CidrBlockAssociationSet")
	}
	return list("ipv6CidrBlockAssociationSet", []netip.Prefix{cidr}, func(p netip.Prefix) []element {
		return []element{str("ipv6CidrBlock", p.String()), str("associationId", kind+"-cidr-assoc6"+id[len(kind):]), el("ipv6CidrBlockState", str("state", "associated"))}
	})
}
