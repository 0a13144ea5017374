package vpc

import (
	"fmt"
	"net/netip"
	"strconv"
)

// Direction of a packet as seen from an ENI.
type Direction string

const (
	Ingress Direction = "ingress" // to the ENI
	Egress  Direction = "egress"  // from the ENI
)

// rule is a Rule compiled for matching.
type rule struct {
	id       string
	proto    int // -1: all
	from, to int // ports, or ICMP type and code; -1: all
	cidr     netip.Prefix
	group    string // id; empty: cidr counts
}

func compileRules(rs []Rule) []rule {
	out := make([]rule, 0, len(rs))
	for _, r := range rs {
		out = append(out, rule{id: r.ID, proto: r.Protocol, from: r.FromPort, to: r.ToPort, cidr: r.CIDR.Masked(), group: r.Group})
	}
	return out
}

// matchTraffic says whether the rule is for such packets, whoever the peer is.
func (r *rule) matchTraffic(p *packet) bool {
	if r.proto == -1 {
		return true
	}
	if r.proto != int(p.proto) {
		return false
	}
	switch p.proto {
	case protoTCP, protoUDP:
		return r.from == -1 || r.from <= int(p.dstPort) && int(p.dstPort) <= r.to
	case protoICMP, protoICMPv6:
		return (r.from == -1 || r.from == int(p.icmpType)) && (r.to == -1 || r.from == -1 || r.to == int(p.icmpCode))
	}
	return true
}

// matchPeer says whether the rule is for this peer: an address, and the ENI that owns it (nil when none does).
func (r *rule) matchPeer(addr netip.Addr, owner *eni) bool {
	if r.group != "" {
		return owner != nil && owner.member[r.group]
	}
	return r.cidr.IsValid() && r.cidr.Contains(addr)
}

func (g *group) rules(d Direction) []rule {
	if d == Ingress {
		return g.ingress
	}
	return g.egress
}

// peer is the address at the other end, as seen from the ENI.
func peer(d Direction, p *packet) netip.Addr {
	if d == Ingress {
		return p.src
	}
	return p.dst
}

// allowed says whether any rule of any group of the ENI lets the packet through. Tracked flows are the caller's matter.
func (x *index) allowed(e *eni, d Direction, p *packet) bool {
	addr := peer(d, p)
	owner := x.owner(addr)
	for _, g := range e.groups {
		rules := g.rules(d)
		for i := range rules {
			if rules[i].matchTraffic(p) && rules[i].matchPeer(addr, owner) {
				return true
			}
		}
	}
	return false
}

// explain says of each rule that allowed has looked up why it did not match. It is for the drop log, so that a
// refusal can be understood without repeating it.
func (x *index) explain(e *eni, d Direction, p *packet) []string {
	addr := peer(d, p)
	owner := x.owner(addr)
	who := addr.String() + " (no ENI of the VPC)"
	if owner != nil {
		who = fmt.Sprintf("%s (%s)", addr, owner.id)
	}
	var out []string
	for _, g := range e.groups {
		rules := g.rules(d)
		if len(rules) == 0 {
			out = append(out, fmt.Sprintf("%s: no %s rule", g.id, d))
		}
		for i := range rules {
			r := &rules[i]
			why := "other protocol or port"
			if r.matchTraffic(p) {
				why = who + " is not " + r.peerString()
				if r.group != "" {
					why = who + " is not in " + r.group
				}
			}
			out = append(out, fmt.Sprintf("%s %s %s %s: %s", g.id, r.id, r.trafficString(), r.peerString(), why))
		}
	}
	if len(e.groups) == 0 {
		out = append(out, "the ENI has no security group")
	}
	return out
}

func (r *rule) peerString() string {
	if r.group != "" {
		return r.group
	}
	return r.cidr.String()
}

func (r *rule) trafficString() string {
	if r.proto == -1 {
		return "all"
	}
	s := protoName(uint8(r.proto))
	switch {
	case r.from == -1:
	case r.from == r.to:
		s += "/" + strconv.Itoa(r.from)
	default:
		s += fmt.Sprintf("/%d-%d", r.from, r.to)
	}
	return s
}

func protoName(p uint8) string {
	switch p {
	case protoICMP:
		return "icmp"
	case protoICMPv6:
		return "icmpv6"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	}
	return "proto-" + strconv.Itoa(int(p))
}
