package datapath

import (
	"net"
	"net/netip"
	"strconv"
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
	// Further are a regular pod's interfaces on further network cards of the node, beside the first.
	Further []Further
}

// Regular says how a pod with an address of one of the node's ENIs leaves the node.
type Regular struct {
	// RouteTable is the ENI's; MainTable for the primary ENI. 0: the agent's marks choose it, no rule is needed.
	RouteTable int
}

// Further is an interface of a pod beside its first.
type Further struct {
	Address netip.Addr // of the first one's family
	Regular
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
	// Further are the veths of a regular pod's interfaces on further network cards, by number; their marks have the
	// addresses.
	Further []AddVeth
	Steps   []Step // in order, HostVeth, VLAN and Further included
}

// NewPlan decides how the sandbox is wired. It asks the kernel nothing.
func NewPlan(r Request) (Plan, error) {
	if err := r.validate(); err != nil {
		return Plan{}, err
	}
	prefix, mark := r.VethPrefix, Mark{Owner: r.Owner, Address: r.Address, Further: len(r.Further)}
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
	p.link(p.HostVeth, MainTable)
	p.routes(r)
	for i, f := range r.Further {
		p.further(r, i+1, f)
	}
	if r.Address.Is6() {
		// Each waits with all before it sent: last, so that one is enough for all.
		p.add(AwaitAddress{p.HostVeth.Pod, r.Address})
		for _, veth := range p.Further {
			p.add(AwaitAddress{veth.Pod, veth.Mark.Address})
		}
	}
	return p, nil
}

// link is one veth with its address, the pod's way out over it, in a table of the pod's, and what the host knows of the
// pod's end.
func (p *Plan) link(veth AddVeth, table int) {
	address, gateway := veth.Mark.Address, PodGateway(veth.Mark.Address)
	p.add(veth)
	p.hear(veth.Host)
	p.add(
		AddAddress{Pod, veth.Pod, single(address)},
		AddNeighbour{Pod, veth.Pod, gateway, veth.HostMAC},
		AddRoute{Side: Pod, Table: table, Dst: single(gateway), Link: veth.Pod},
		AddRoute{Side: Pod, Table: table, Dst: everywhere(address), Gateway: gateway, Link: veth.Pod},
		// Nobody asks for the pod's MAC, and nothing remembers that of the address's last pod.
		AddNeighbour{Host, veth.Host, address, veth.PodMAC},
	)
}

// further wires an interface on a further network card. On the host it is like a regular pod's; in the pod only what has
// its address leaves by it.
func (p *Plan) further(r Request, number int, f Further) {
	ends := strconv.Itoa(number)
	veth := AddVeth{
		Host: HostVethName(r.VethPrefix, r.PodNamespace, FurtherPodName(r.PodName, number)), Pod: FurtherIfName(number), MTU: r.MTU,
		Mark:    Mark{Owner: r.Owner, Address: f.Address, Number: number},
		HostMAC: linkMAC(r.Owner, "host"+ends), PodMAC: linkMAC(r.Owner, "pod"+ends),
	}
	p.Further = append(p.Further, veth)
	table := furtherTable(number)
	p.link(veth, table)
	p.add(AddRule{Rule{Side: Pod, IPv6: f.Address.Is6(), Priority: PriorityFromFurther, From: f.Address, Table: table}})
	p.regular(veth, f.RouteTable)
}

func (p *Plan) add(steps ...Step) { p.Steps = append(p.Steps, steps...) }

// hear keeps router advertisements and redirects of a pod, or of its subnet, from changing the host's IPv6 routes.
func (p *Plan) hear(link string) {
	p.add(SetSysctl{IPv6: true, Link: link, Key: "accept_ra", Value: "0"}, SetSysctl{IPv6: true, Link: link, Key: "accept_redirects", Value: "0"})
}

// by is a rule for what comes in by a link; its table is 0 where it is to go.
func by(a netip.Addr, priority int, link string, table int) Rule {
	return Rule{IPv6: a.Is6(), Priority: priority, Iif: link, Table: table}
}

// fromAddress is the rule for what an address sends, without its table.
func fromAddress(a netip.Addr) Rule {
	return Rule{IPv6: a.Is6(), Priority: PriorityFromPod, From: a}
}

// toAddress is upstream's rule for what goes to an address, without its table. It is there before that of the pods' table, at
// the same priority.
func toAddress(a netip.Addr) Rule {
	return Rule{IPv6: a.Is6(), Priority: PriorityToPod, To: a}
}

// regular is the host's way to the address of a regular pod's interface, and out of the host from it.
func (p *Plan) regular(veth AddVeth, table int) {
	a := veth.Mark.Address
	// Rules that an older sandbox with the same name, VLAN id or address may have left, whose DEL is still to come and
	// will find that what they select is not its own any more, are deleted here. So is its way to the address, if its pods'
	// table is the other one: what it leads to would go on to reach the older sandbox. And so is a rule of upstream's for a
	// pod that it has forgotten: nobody would reach the new one.
	p.add(
		DeleteRoute{StrictPodsTable, a},
		AddRoute{Table: LocalPodsTable, Dst: single(a), Link: veth.Host},
		DeleteRule{toAddress(a)},
		DeleteRule{by(a, PriorityStandard, veth.Host, 0)},
	)
	rule := fromAddress(a)
	if table == MainTable || table == 0 {
		p.add(DeleteRule{rule})
		return
	}
	rule.Table = table
	p.add(AddRule{rule})
}

// routes is the host's way to the pod's first address, and the pod's out of the host.
func (p *Plan) routes(r Request) {
	if r.Regular != nil {
		p.regular(p.HostVeth, r.Regular.RouteTable)
		return
	}
	a, b, host := r.Address, r.Branch, p.HostVeth.Host
	local := AddRoute{Table: LocalPodsTable, Dst: single(a), Link: host}
	// What is stale goes here as well, see regular.
	stale := DeleteRoute{StrictPodsTable, a}
	if r.strict() {
		stale.Table = LocalPodsTable
	}
	p.add(stale)
	table, vlan := VLANTable(b.VLAN), p.VLAN.Name
	p.add(
		AddRoute{Table: table, Dst: single(b.Gateway), Link: vlan},
		AddRoute{Table: table, Dst: everywhere(a), Gateway: b.Gateway, Link: vlan},
	)
	if b.Mode == Standard {
		p.add(local, DeleteRule{toAddress(a)}, DeleteRule{by(a, PriorityBranch, vlan, 0)}, DeleteRule{fromAddress(a)}, AddRule{by(a, PriorityStandard, host, table)})
		return
	}
	inTable := local
	inTable.Table = table
	local.Table = StrictPodsTable
	p.add(inTable, local, AddRule{by(a, PriorityBranch, vlan, table)}, AddRule{by(a, PriorityBranch, host, table)})
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
