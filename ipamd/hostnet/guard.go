package hostnet

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// GuardTable is the nftables table that keeps the addresses of egress-cni a way out and no way in, and translates what
// leaves from them. The plugin makes rules of its own with a pod; these are there before the first pod, are put back when
// somebody took them, and hold against the node itself, whose processes would reach pods past their network policies.
const GuardTable = "branchline-guard"

// guardTable is in the family that pods don't have: their way out of it is what egress-cni gives them.
func (d Desired) guardTable() (t nftTable, wanted bool) {
	p := d.Egress
	if !p.IsValid() {
		return t, false
	}
	multicast := netip.MustParsePrefix("224.0.0.0/4")
	if p.Addr().Is6() {
		multicast = netip.MustParsePrefix("ff00::/8")
	}
	newOne := concat(destinationIn(p), newConnection(), parts{verdict(expr.VerdictDrop)})
	return nftTable{name: GuardTable, family: familyOf(p.Addr().Is6()), chains: []nftChain{
		{name: "forward", hook: nftables.ChainHookForward, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityFilter, rules: []parts{newOne}},
		{name: "output", hook: nftables.ChainHookOutput, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityFilter, rules: []parts{newOne}},
		{name: "translating", hook: nftables.ChainHookPostrouting, kind: nftables.ChainTypeNAT, priority: nftables.ChainPriorityNATSource, rules: []parts{
			concat(destinationIn(multicast), ret()),
			concat(sourceIn(p), parts{&expr.Masq{Random: d.NAT.Ports == PortsHashed, FullyRandom: d.NAT.Ports == PortsRandom}}),
		}},
	}}, true
}
