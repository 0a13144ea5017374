package datapath

import (
	"fmt"
	"net"
	"net/netip"
)

// Request is everything that a plan depends on. Exactly one of Regular and Branch is set.
type Request struct {
	Owner        Owner
	PodNamespace string
	PodName      string
	VethPrefix   string // of regular pods
	MTU          int
	Address      netip.Addr // the pod's IPv4 address
	Regular      *Regular
	Branch       *Branch
}

// Regular says how a pod with a secondary address of one of the node's ENIs leaves the node.
type Regular struct {
	// RouteTable is the ENI's; MainTable for the primary ENI.
	RouteTable int
}

// Branch is a strict branch pod's ENI.
type Branch struct {
	VLAN         int
	MAC          net.HardwareAddr
	Gateway      netip.Addr // of the branch ENI's subnet
	TrunkIfindex int
}

// Side is the network namespace in which a step works.
type Side int

// The two sides of a sandbox.
const (
	Host Side = iota
	Pod
)

func (s Side) String() string { return [...]string{"host", "pod"}[s] }

// Step is one change of the kernel's state. Steps name links, never indexes: a plan is made before its links are.
type Step interface{ String() string }

// The steps that make something.
type (
	// AddVLAN makes a VLAN link on the host, down.
	AddVLAN struct {
		Name         string
		ID           int
		TrunkIfindex int
		MAC          net.HardwareAddr
	}
	// AddVeth makes both ends at once, each born in its own namespace, down.
	AddVeth struct {
		Host, Pod       string
		HostMAC, PodMAC net.HardwareAddr
		MTU             int
	}
	// SetMark writes a host link's ifalias.
	SetMark struct {
		Link string
		Mark Mark
	}
	// SetSysctl writes net.ipv4.conf.<link>.<key> on the host.
	SetSysctl struct{ Link, Key, Value string }
	// SetUp brings a link up.
	SetUp struct {
		Side Side
		Link string
	}
	// AddAddress gives the pod's link its address.
	AddAddress struct {
		Link    string
		Address netip.Prefix
	}
	// AddNeighbour makes a permanent neighbour entry in the pod.
	AddNeighbour struct {
		Link    string
		Address netip.Addr
		MAC     net.HardwareAddr
	}
	// AddRoute makes or takes over a route. Without a gateway its scope is the link.
	AddRoute struct {
		Side    Side
		Table   int
		Dst     netip.Prefix
		Gateway netip.Addr // invalid: none
		Link    string
	}
	// AddRule makes a host rule, in place of all others with its priority and selector.
	AddRule struct{ Rule }
)

// The steps that take something away; what is not there any more is success.
type (
	// DeleteLink removes a host link.
	DeleteLink struct{ Name string }
	// DeleteRule removes a host rule; Table 0 means whatever its table.
	DeleteRule struct{ Rule }
)

// Rule is an IPv4 policy routing rule; exactly one of Iif and From is set.
type Rule struct {
	Priority int
	Iif      string
	From     netip.Addr
	Table    int
}

func (r Rule) String() string {
	s := fmt.Sprintf("rule %d", r.Priority)
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.Iif != "" {
		s += " iif " + r.Iif
	}
	if r.Table != 0 {
		s += fmt.Sprintf(" lookup %d", r.Table)
	}
	return s
}

func (s AddVLAN) String() string {
	return fmt.Sprintf("create VLAN link %s (id %d, %s) on the trunk with ifindex %d", s.Name, s.ID, s.MAC, s.TrunkIfindex)
}
func (s AddVeth) String() string {
	return fmt.Sprintf("create veth %s with peer %s in the pod (mtu %d)", s.Host, s.Pod, s.MTU)
}
func (s SetMark) String() string   { return fmt.Sprintf("mark %s as %q", s.Link, s.Mark) }
func (s SetSysctl) String() string { return fmt.Sprintf("set %s of %s to %s", s.Key, s.Link, s.Value) }
func (s SetUp) String() string     { return fmt.Sprintf("bring up %s (%s)", s.Link, s.Side) }
func (s AddAddress) String() string {
	return fmt.Sprintf("add address %s to %s (pod)", s.Address, s.Link)
}
func (s AddNeighbour) String() string {
	return fmt.Sprintf("add neighbour %s lladdr %s on %s (pod)", s.Address, s.MAC, s.Link)
}
func (s AddRoute) String() string {
	via := ""
	if s.Gateway.IsValid() {
		via = " via " + s.Gateway.String()
	}
	return fmt.Sprintf("add route %s%s dev %s table %d (%s)", s.Dst, via, s.Link, s.Table, s.Side)
}
func (s AddRule) String() string    { return "add " + s.Rule.String() }
func (s DeleteLink) String() string { return "delete link " + s.Name }
func (s DeleteRule) String() string { return "delete " + s.Rule.String() }

// Plan is what wires one sandbox.
type Plan struct {
	Owner    Owner
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
	if r.Branch != nil {
		prefix, mark.VLAN = BranchVethPrefix, r.Branch.VLAN
	}
	veth := AddVeth{
		Host: HostVethName(prefix, r.PodNamespace, r.PodName), Pod: r.Owner.IfName, MTU: r.MTU,
		HostMAC: linkMAC(r.Owner, "host"), PodMAC: linkMAC(r.Owner, "pod"),
	}
	p := Plan{Owner: r.Owner, HostVeth: veth}
	add := func(steps ...Step) { p.Steps = append(p.Steps, steps...) }
	single := netip.PrefixFrom(r.Address, 32)

	if b := r.Branch; b != nil {
		p.VLAN = &AddVLAN{Name: VLANLinkName(b.VLAN), ID: b.VLAN, TrunkIfindex: b.TrunkIfindex, MAC: b.MAC}
		add(*p.VLAN, SetMark{p.VLAN.Name, mark}, SetSysctl{p.VLAN.Name, "rp_filter", looseRPFilter})
	}
	add(veth, SetMark{veth.Host, mark}, SetSysctl{veth.Host, "rp_filter", looseRPFilter},
		SetUp{Host, veth.Host}, SetUp{Pod, veth.Pod},
		AddAddress{veth.Pod, single},
		AddNeighbour{veth.Pod, PodGateway, veth.HostMAC},
		AddRoute{Side: Pod, Table: MainTable, Dst: netip.PrefixFrom(PodGateway, 32), Link: veth.Pod},
		AddRoute{Side: Pod, Table: MainTable, Dst: anyIPv4, Gateway: PodGateway, Link: veth.Pod},
	)
	if b := r.Branch; b != nil {
		table, vlan := VLANTable(b.VLAN), p.VLAN.Name
		add(SetUp{Host, vlan},
			AddRoute{Table: table, Dst: netip.PrefixFrom(b.Gateway, 32), Link: vlan},
			AddRoute{Table: table, Dst: anyIPv4, Gateway: b.Gateway, Link: vlan},
			AddRoute{Table: table, Dst: single, Link: veth.Host},
			AddRule{Rule{Priority: PriorityBranch, Iif: vlan, Table: table}},
			AddRule{Rule{Priority: PriorityBranch, Iif: veth.Host, Table: table}},
		)
		return p, nil
	}
	add(AddRoute{Table: LocalPodsTable, Dst: single, Link: veth.Host})
	fromPod := Rule{Priority: PriorityFromPod, From: r.Address}
	if r.Regular.RouteTable == MainTable {
		// An older sandbox with this address, whose DEL is still to come, may have been on another ENI.
		add(DeleteRule{fromPod})
	} else {
		fromPod.Table = r.Regular.RouteTable
		add(AddRule{fromPod})
	}
	return p, nil
}

var anyIPv4 = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// Undo is what takes away the steps that were done, newest first. Addresses, neighbours, routes, sysctls and marks go
// with their links.
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
