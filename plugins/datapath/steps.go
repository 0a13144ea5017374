package datapath

import (
	"fmt"
	"net"
	"net/netip"
)

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

// The steps that make something. Each has an object: what is there once it is done, for people.
type (
	// AddVLAN makes a VLAN link on the host, marked, up, with loose reverse-path filtering.
	AddVLAN struct {
		Name         string
		ID           int
		TrunkIfindex int
		MAC          net.HardwareAddr
		Mark         Mark
	}
	// AddVeth makes both ends at once, each born in its own namespace, and brings them up; the host's is marked and
	// filters reverse paths loosely and has no link-local address, which nobody asks for.
	AddVeth struct {
		Host, Pod       string
		HostMAC, PodMAC net.HardwareAddr
		MTU             int
		Mark            Mark
	}
	// SetSysctl writes net.ipv4.conf.<link>.<key>, or net.ipv6's, on the host. A kernel without IPv6 needs none of its.
	SetSysctl struct {
		IPv6             bool
		Link, Key, Value string
	}
	// AddAddress gives a link an address, for which no duplicates are looked for.
	AddAddress struct {
		Side    Side
		Link    string
		Address netip.Prefix
	}
	// AddNeighbour makes a permanent neighbour entry.
	AddNeighbour struct {
		Side    Side
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
	// AddRule makes a rule, in place of all others with its priority and selector.
	AddRule struct{ Rule }
	// AwaitAddress waits until the pod can be reached by its IPv6 address: the kernel puts it to use some time after it
	// has taken it.
	AwaitAddress struct {
		Link    string
		Address netip.Addr
	}
)

// The steps that take something away; what is not there any more is success.
type (
	// DeleteLink removes a host link.
	DeleteLink struct{ Name string }
	// DeleteRule removes a rule; Table 0 means whatever its table.
	DeleteRule struct{ Rule }
	// DeleteRoute removes a host route to a single address, whatever link it is by.
	DeleteRoute struct {
		Table   int
		Address netip.Addr
	}
)

// Rule is a policy routing rule; exactly one of Iif, From and To is set. Rules of ours have no To.
type Rule struct {
	Side     Side
	IPv6     bool
	Priority int
	Iif      string
	From, To netip.Addr
	Table    int
}

func (r Rule) String() string {
	s := fmt.Sprintf("rule %d", r.Priority)
	if r.IPv6 {
		s = "IPv6 " + s
	}
	if r.From.IsValid() {
		s += " from " + r.From.String()
	}
	if r.To.IsValid() {
		s += " to " + r.To.String()
	}
	if r.Iif != "" {
		s += " iif " + r.Iif
	}
	if r.Table != 0 {
		s += fmt.Sprintf(" lookup %d", r.Table)
	}
	if r.Side == Pod {
		s += " (pod)"
	}
	return s
}

func (s AddVLAN) object() string {
	return fmt.Sprintf("VLAN link %s (id %d, %s) on the trunk with ifindex %d", s.Name, s.ID, s.MAC, s.TrunkIfindex)
}
func (s AddVeth) object() string {
	return fmt.Sprintf("veth %s with peer %s in the pod (mtu %d)", s.Host, s.Pod, s.MTU)
}
func (s SetSysctl) object() string {
	family := "ipv4"
	if s.IPv6 {
		family = "ipv6"
	}
	return fmt.Sprintf("%s setting %s of %s", family, s.Key, s.Link)
}
func (s AddAddress) object() string {
	return fmt.Sprintf("address %s dev %s (%s)", s.Address, s.Link, s.Side)
}
func (s AddNeighbour) object() string {
	return fmt.Sprintf("neighbour %s lladdr %s dev %s (%s)", s.Address, s.MAC, s.Link, s.Side)
}
func (s AddRoute) object() string {
	dst, via := s.Dst.String(), ""
	if s.Dst.Bits() == 0 {
		dst = "default"
	}
	if s.Gateway.IsValid() {
		via = " via " + s.Gateway.String()
	}
	return fmt.Sprintf("route %s%s dev %s table %d (%s)", dst, via, s.Link, s.Table, s.Side)
}
func (s AddRule) object() string { return s.Rule.String() }
func (s DeleteRoute) object() string {
	return fmt.Sprintf("route %s table %d", single(s.Address), s.Table)
}
func (s AwaitAddress) object() string {
	return fmt.Sprintf("local route to %s dev %s (pod)", s.Address, s.Link)
}

func (s AddVLAN) String() string      { return "create " + s.object() }
func (s AddVeth) String() string      { return "create " + s.object() }
func (s SetSysctl) String() string    { return "write " + s.object() + " as " + s.Value }
func (s AddAddress) String() string   { return "add " + s.object() }
func (s AddNeighbour) String() string { return "add " + s.object() }
func (s AddRoute) String() string     { return "add " + s.object() }
func (s AddRule) String() string      { return "add " + s.object() }
func (s AwaitAddress) String() string { return "await " + s.object() }
func (s DeleteLink) String() string   { return "delete link " + s.Name }
func (s DeleteRule) String() string   { return "delete " + s.Rule.String() }
func (s DeleteRoute) String() string  { return "delete " + s.object() }
