package vpc

import (
	"encoding/binary"
	"hash/fnv"
	"net/netip"
)

// index is a Topology compiled for forwarding. It doesn't change; Apply makes a new one.
type index struct {
	enis map[string]*eni
	byIP map[netip.Addr]*eni
	// byPrefix has the IPv6 prefixes of ENIs, which have too many addresses for byIP.
	byPrefix map[netip.Prefix]*eni
	byMAC    map[mac]*eni
	dns      ip4 // the VPC's base + 2
}

// eni is an ENI in an index. What outlives the index is in st.
type eni struct {
	id     string
	mac    mac
	ips    []ip4
	check  bool // source/destination check
	subnet *subnet
	groups []*group
	member map[string]bool // the ids of groups
	// attached to an instance, itself or (a branch) through its trunk.
	attached bool
	trunk    *eni // of an associated branch
	vlan     uint16
	branches map[uint16]*eni // of a trunk, by VLAN id
	st       *eniState
}

// port is where the ENI's frames go in and out.
func (e *eni) port() *eniState {
	if e.trunk != nil {
		return e.trunk.st
	}
	return e.st
}

func (e *eni) isBranch() bool { return e.trunk != nil }

type subnet struct {
	cidr    netip.Prefix
	gateway ip4
	// routerMAC is what the subnet's gateway and the services answer ARP with.
	routerMAC mac
}

type group struct {
	id              string
	ingress, egress []rule
}

// eniState is what the fabric remembers about an ENI from one Topology to the next.
type eniState struct {
	id    string
	flows flowTable
	port  *port         // nil for a branch and while nothing is plugged in
	svc   *serviceStack // made on first use
}

// compile makes an index. states holds the state of each ENI of the last one; it is brought up to date: new ENIs get a
// new state. The caller discards what is no longer in the index.
func compile(t *Topology, states map[string]*eniState) *index {
	x := &index{enis: make(map[string]*eni, len(t.ENIs)), byIP: map[netip.Addr]*eni{}, byPrefix: map[netip.Prefix]*eni{}, byMAC: map[mac]*eni{}}
	if len(t.CIDRs) > 0 {
		x.dns, _ = plus(t.CIDRs[0], 2)
	}
	subnets := make(map[string]*subnet, len(t.Subnets))
	for _, s := range t.Subnets {
		gw, ok := plus(s.CIDR, 1)
		if !ok {
			continue // each has IPv4, too
		}
		subnets[s.ID] = &subnet{cidr: s.CIDR.Masked(), gateway: gw, routerMAC: routerMAC(s.ID)}
	}
	groups := make(map[string]*group, len(t.Groups))
	for _, g := range t.Groups {
		groups[g.ID] = &group{id: g.ID, ingress: compileRules(g.Ingress), egress: compileRules(g.Egress)}
	}
	for _, te := range t.ENIs {
		sn := subnets[te.SubnetID]
		if sn == nil || len(te.MAC) != 6 {
			continue // can't send or receive anything
		}
		e := &eni{
			id: te.ID, mac: mac(te.MAC), check: te.SourceDestCheck, subnet: sn,
			member: make(map[string]bool, len(te.Groups)), attached: te.InstanceID != "", vlan: te.VLAN,
		}
		for _, a := range te.Addresses {
			if ip, ok := toIP4(a); ok {
				e.ips = append(e.ips, ip)
			}
			x.byIP[a.Unmap()] = e
		}
		for _, p := range te.Prefixes {
			x.byPrefix[p.Masked()] = e
		}
		for _, id := range te.Groups {
			e.member[id] = true
			if g := groups[id]; g != nil {
				e.groups = append(e.groups, g)
			}
		}
		if e.st = states[te.ID]; e.st == nil {
			e.st = &eniState{id: te.ID, flows: flowTable{}}
			states[te.ID] = e.st
		}
		x.enis[e.id] = e
		x.byMAC[e.mac] = e
	}
	for _, te := range t.ENIs {
		b, trunk := x.enis[te.ID], x.enis[te.TrunkID]
		if b == nil || te.TrunkID == "" {
			continue
		}
		b.attached = trunk != nil && trunk.attached
		if trunk == nil {
			continue
		}
		b.trunk = trunk
		if trunk.branches == nil {
			trunk.branches = map[uint16]*eni{}
		}
		trunk.branches[b.vlan] = b
	}
	return x
}

// plus returns the n-th address of an IPv4 prefix.
func plus(p netip.Prefix, n uint32) (ip4, bool) {
	base, ok := toIP4(p.Masked().Addr())
	if !ok {
		return ip4{}, false
	}
	var out ip4
	binary.BigEndian.PutUint32(out[:], binary.BigEndian.Uint32(base[:])+n)
	return out, true
}

// routerMAC is a locally administered MAC that is the same for a subnet at any time.
func routerMAC(subnetID string) mac {
	h := fnv.New64a()
	h.Write([]byte(subnetID))
	m := mac{0x0e, 0xff}
	copy(m[2:], h.Sum(nil)[4:])
	return m
}
