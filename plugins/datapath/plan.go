package datapath

import (
	"net"
	"net/netip"
)

// Request is everything that a plan depends on. Exactly one of Regular and Branch is set.
type Request struct {
	Owner        Owner
	PodNamespace string
	PodName      string
	VethPrefix   string // of all but strict branch pods
	MTU          int
	Address      netip.Addr // the pod's, of either family
	DisableIPv6  bool       // in an IPv4 pod
	Regular      *Regular
	Branch       *Branch
}

// Regular says how a pod with an address of one of the node's ENIs leaves the node.
type Regular struct {
	// RouteTable is the ENI's; MainTable for the primary ENI. 0: the agent's marks choose it, no rule is needed.
	RouteTable int
}

// Mode says which traffic of a branch pod passes its VLAN link.
type Mode int

// The modes.
const (
	Strict   Mode = iota // all, in both directions
	Standard             // what leaves the node, and what comes from outside
)

func (m Mode) String() string { return [...]string{"strict", "standard"}[m] }

// Branch is a branch pod's ENI.
type Branch struct {
	VLAN         int
	MAC          net.HardwareAddr
	Gateway      netip.Addr // of the branch ENI's subnet
	TrunkIfindex int
	Mode         Mode
}

// Plan is what wires one sandbox.
type Plan struct {
	Owner    Owner
	Address  netip.Addr
	HostVeth AddVeth
	VLAN     *AddVLAN // nil for a regular pod
	Steps    []Step   // in order, HostVeth and VLAN included
}

// NewPlan decides how the sandbox is wired. It asks the kernel nothing.
func NewPlan(r Request) (Plan, error) {
	if err := r.validate(); err != nil {
		return Plan{}, err
	}
	prefix, mark := r.VethPrefix, Mark{Owner: r.Owner, Address: r.Address}
	if r.strict() {
		prefix = BranchVethPrefix
	}
	if r.Branch != nil {
		mark.VLAN, mark.Mode = r.Branch.VLAN, r.Branch.Mode
	}
	p := Plan{Owner: r.Owner, Address: r.Address, HostVeth: AddVeth{
		Host: HostVethName(prefix, r.PodNamespace, r.PodName), Pod: r.Owner.IfName, MTU: r.MTU, Mark: mark,
		HostMAC: linkMAC(r.Owner, "host"), PodMAC: linkMAC(r.Owner, "pod"),
	}}
	veth, gateway, one := p.HostVeth, PodGateway(r.Address), single(r.Address)
	if r.DisableIPv6 && r.Address.Is4() {
		p.add(DisableIPv6{}) // before the pod's link is there, so that it never has an IPv6 address
	}
	if b := r.Branch; b != nil {
		p.VLAN = &AddVLAN{Name: VLANLinkName(b.VLAN), ID: b.VLAN, TrunkIfindex: b.TrunkIfindex, MAC: b.MAC, Mark: mark}
		p.add(*p.VLAN)
		p.hear(p.VLAN.Name)
		if r.Address.Is6() {
			// The VPC's router is asked for from here: an address that is there at once, while the one that the kernel
			// gives to the link waits a second for duplicates of it.
			p.add(AddAddress{Host, p.VLAN.Name, single(linkLocal(linkMAC(r.Owner, "vlan")))})
		}
	}
	p.add(veth)
	p.hear(veth.Host)
	p.add(
		AddAddress{Pod, veth.Pod, one},
		AddNeighbour{Pod, veth.Pod, gateway, veth.HostMAC},
		AddRoute{Side: Pod, Table: MainTable, Dst: single(gateway), Link: veth.Pod},
		AddRoute{Side: Pod, Table: MainTable, Dst: everywhere(r.Address), Gateway: gateway, Link: veth.Pod},
		// Nobody asks for the pod's MAC, and nothing remembers that of the address's last pod.
		AddNeighbour{Host, veth.Host, r.Address, veth.PodMAC},
	)
	p.routes(r, one)
	if r.Address.Is6() {
		p.add(AwaitAddress{veth.Pod, r.Address})
	}
	return p, nil
}

func (p *Plan) add(steps ...Step) { p.Steps = append(p.Steps, steps...) }

// hear keeps router advertisements and redirects of a pod, or of its subnet, from changing the host's IPv6 routes.
func (p *Plan) hear(link string) {
	p.add(SetSysctl{IPv6: true, Link: link, Key: "accept_ra", Value: "0"}, SetSysctl{IPv6: true, Link: link, Key: "accept_redirects", Value: "0"})
}

// routes is the host's way to the pod, and the pod's out of the host.
func (p *Plan) routes(r Request, one netip.Prefix) {
	local := AddRoute{Table: LocalPodsTable, Dst: one, Link: p.HostVeth.Host}
	ipv6, b := r.Address.Is6(), r.Branch
	by := func(priority int, link string, table int) Rule {
		return Rule{IPv6: ipv6, Priority: priority, Iif: link, Table: table}
	}
	// Rules that an older sandbox with the same name, VLAN id or address may have left, whose DEL is still to come and
	// will find that what they select is not its own any more, are deleted here. So is its way to the address, if its pods'
	// table is the other one: what it leads to would go on to reach the older sandbox.
	fromPod := Rule{IPv6: ipv6, Priority: PriorityFromPod, From: r.Address}
	stale := DeleteRoute{StrictPodsTable, r.Address}
	if r.strict() {
		stale.Table = LocalPodsTable
	}
	p.add(stale)
	if b == nil {
		p.add(local, DeleteRule{by(PriorityStandard, p.HostVeth.Host, 0)})
		if t := r.Regular.RouteTable; t == MainTable || t == 0 {
			p.add(DeleteRule{fromPod})
		} else {
			fromPod.Table = t
			p.add(AddRule{fromPod})
		}
		return
	}
	table, vlan := VLANTable(b.VLAN), p.VLAN.Name
	p.add(
		AddRoute{Table: table, Dst: single(b.Gateway), Link: vlan},
		AddRoute{Table: table, Dst: everywhere(r.Address), Gateway: b.Gateway, Link: vlan},
	)
	if b.Mode == Standard {
		p.add(local, DeleteRule{by(PriorityBranch, vlan, 0)}, DeleteRule{fromPod}, AddRule{by(PriorityStandard, p.HostVeth.Host, table)})
		return
	}
	inTable := local
	inTable.Table = table
	local.Table = StrictPodsTable
	p.add(inTable, local, AddRule{by(PriorityBranch, vlan, table)}, AddRule{by(PriorityBranch, p.HostVeth.Host, table)})
}

func single(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// everywhere is the default route's destination in the address's family.
func everywhere(a netip.Addr) netip.Prefix {
	if a.Is6() {
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
}

// Undo is what takes away the steps that were done, newest first. Addresses, neighbours, routes and settings go with
// their links.
func Undo(done []Step) []Step {
	var steps []Step
	for i := len(done) - 1; i >= 0; i-- {
		switch s := done[i].(type) {
		case AddRule:
			steps = append(steps, DeleteRule(s))
		case AddVeth:
			steps = append(steps, DeleteLink{s.Host})
		case AddVLAN:
			steps = append(steps, DeleteLink{s.Name})
		}
	}
	return steps
}
