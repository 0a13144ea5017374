package hostnet

import (
	"net/netip"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// NATTable is the nftables table that finds out by which ENI a connection has to leave and gives it an address that this
// ENI owns. It is apart from MarksTable because it tracks connections, which that one never has to.
const NATTable = "branchline-nat"

// Ports says how source ports are chosen where the source is translated.
type Ports int

// The ways of choosing them (AWS_VPC_K8S_CNI_RANDOMIZESNAT).
const (
	PortsRandom Ports = iota // prng: by the kernel's random numbers
	PortsHashed              // hashrandom: by a keyed hash
	PortsKept                // none: the pod's own, where it is free
)

// NAT is what is asked for of source NAT, and of the ways that answers take.
type NAT struct {
	// Source has what regular and standard-mode pods open to destinations outside the VPC leave by the primary ENI, with
	// its address.
	Source bool
	Ports  Ports
	// VPC are the VPC's own destinations. While none is known, what is there stays as it is: nothing inside the VPC is ever
	// translated because a source was silent.
	VPC []netip.Prefix
	// Excluded are more destinations that see the pods' own addresses.
	Excluded []netip.Prefix
	// NodePort has answers to what came in by the primary ENI for an address of the node leave by it, whichever ENI the
	// answering pod has.
	NodePort bool
	// ConnMark is the mark of connections that belong to the primary ENI.
	ConnMark uint32
}

// natTable is the table of source NAT and of NodePort's answers. unknown is set while the primary ENI or the VPC's
// prefixes are not: then nothing is to be changed. Without either of the two there is none.
func (d Desired) natTable() (t nftTable, wanted, unknown bool) {
	n := d.NAT
	source := n.Source && !d.IPv6 // an IPv6 address is the same everywhere
	if !source && !n.NodePort || n.ConnMark == 0 {
		return t, false, false
	}
	at := slices.IndexFunc(d.ENIs, func(e ENI) bool { return e.Slot() == Slot{} && d.family(e.Primary) })
	if at < 0 || source && len(n.VPC) == 0 {
		return t, false, true
	}
	primary := d.ENIs[at]
	t = nftTable{name: NATTable, family: familyOf(d.IPv6)}
	if n.NodePort {
		t.chains = append(t.chains, n.arriving(primary.LinkIndex))
	}
	leaving := nftChain{name: "leaving", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter, priority: nftables.ChainPriorityRef(*nftables.ChainPriorityNATDest + afterDNAT)}
	leaving.rules = append(leaving.rules, parts{iifname(), startsWith(d.VethPrefix, expr.CmpOpNeq), verdict(expr.VerdictReturn)})
	if source {
		leaving.rules = append(leaving.rules, concat(newConnection(), n.ofPrimary(false), jump(outboundChain)))
	}
	leaving.rules = append(leaving.rules, concat(n.ofPrimary(true), setMark(markOf(0), ENIMask)))
	t.chains = append(t.chains, leaving)
	// What IPVS forwards was taken for this node's own when it was routed, and is routed again without its source: by its
	// mark it takes its ENI's way. A mark that changes is what has the kernel route it once more.
	balanced := nftChain{name: "balanced", hook: nftables.ChainHookOutput, kind: nftables.ChainTypeRoute}
	if source {
		balanced.rules = append(balanced.rules, concat(marked(ENIMask, true), newConnection(), n.ofPrimary(false), jump(outboundChain)))
	}
	balanced.rules = append(balanced.rules, concat(marked(ENIMask, true), setMark(RerouteMark, RerouteMark)))
	t.chains = append(t.chains, balanced)
	if source {
		t.chains = append(t.chains, d.outbound(), d.translating(primary.Primary))
	}
	return t, true, false
}

// afterDNAT is how far behind the translation of destinations a chain is: it sees the endpoint that kube-proxy chose, and
// so tells a Service from a destination outside the VPC.
const afterDNAT = 10

const outboundChain = "outbound"

// arriving notes that a connection came in by the primary ENI for an address of the node there, before kube-proxy or
// portmap make the destination a pod's.
func (n NAT) arriving(link int) nftChain {
	return nftChain{name: "arriving", hook: nftables.ChainHookPrerouting, kind: nftables.ChainTypeFilter, rules: []parts{concat(
		parts{&expr.Meta{Key: expr.MetaKeyIIF, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(uint32(link))}},
		newConnection(), destinationIsLocal(true), n.setOfPrimary(),
	)}}
}

// outbound decides on a connection's first packet, once: rules by prefix cost only that one.
func (d Desired) outbound() nftChain {
	c := nftChain{name: outboundChain}
	for _, p := range sorted(append(slices.Clone(d.NAT.VPC), d.NAT.Excluded...)) {
		if d.family(p.Addr()) {
			c.rules = append(c.rules, concat(destinationIn(p), ret()))
		}
	}
	c.rules = append(c.rules, concat(destinationIsLocal(false), ret()))
	c.rules = append(c.rules, concat(d.NAT.setOfPrimary(), setMark(markOf(0)|SourceNATMark, ENIMask|SourceNATMark)))
	return c
}

// translating gives the primary ENI's address to what outbound has chosen, unless it stays on the node after all.
func (d Desired) translating(address netip.Addr) nftChain {
	c := nftChain{name: "translating", hook: nftables.ChainHookPostrouting, kind: nftables.ChainTypeNAT, priority: nftables.ChainPriorityNATSource}
	c.rules = append(c.rules, concat(marked(SourceNATMark, false), ret()))
	for _, prefix := range []string{d.VethPrefix, strictPrefix} {
		c.rules = append(c.rules, parts{&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1}, startsWith(prefix, expr.CmpOpEq), verdict(expr.VerdictReturn)})
	}
	c.rules = append(c.rules, parts{&expr.Immediate{Register: 1, Data: address.AsSlice()}, &expr.NAT{
		Type: expr.NATTypeSourceNAT, Family: uint32(familyOf(d.IPv6)), RegAddrMin: 1,
		Random: d.NAT.Ports == PortsHashed, FullyRandom: d.NAT.Ports == PortsRandom,
	}})
	return c
}

// parts are the expressions of a rule, or of a part of one.
type parts = []expr.Any

// ofPrimary matches packets of connections that belong to the primary ENI, or of those that don't.
func (n NAT) ofPrimary(belong bool) parts {
	return concat(parts{&expr.Ct{Register: 1, Key: expr.CtKeyMARK}}, bits(n.ConnMark, belong))
}

func (n NAT) setOfPrimary() parts {
	return parts{&expr.Ct{Register: 1, Key: expr.CtKeyMARK}, masked(n.ConnMark, n.ConnMark), &expr.Ct{Register: 1, SourceRegister: true, Key: expr.CtKeyMARK}}
}

// newConnection matches what opens a connection, until it is answered.
func newConnection() parts {
	return concat(parts{&expr.Ct{Register: 1, Key: expr.CtKeySTATE}}, bits(expr.CtStateBitNEW, true))
}

// marked matches packets with a bit of the mask, or without any.
func marked(mask uint32, with bool) parts {
	return concat(parts{&expr.Meta{Key: expr.MetaKeyMARK, Register: 1}}, bits(mask, with))
}

// bits compares register 1: whether a bit of the mask is set in it, or none.
func bits(mask uint32, set bool) parts {
	op := expr.CmpOpEq
	if set {
		op = expr.CmpOpNeq
	}
	return parts{
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: native(mask), Xor: native(0)},
		&expr.Cmp{Op: op, Register: 1, Data: native(0)},
	}
}

const localAddress = 2 // RTN_LOCAL

// destinationIsLocal matches packets for an address of the node: onLink, one of the link that they came in by.
func destinationIsLocal(onLink bool) parts {
	return parts{
		&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true, FlagIIF: onLink},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: native(localAddress)},
	}
}

func destinationIn(p netip.Prefix) parts {
	if p.Addr().Is6() {
		return addressIn(24, p) // RFC 8200
	}
	return addressIn(16, p) // RFC 791
}

func sourceIn(p netip.Prefix) parts {
	if p.Addr().Is6() {
		return addressIn(8, p)
	}
	return addressIn(12, p)
}

// addressIn matches packets of which the address at this place of the header is in the prefix.
func addressIn(offset uint32, p netip.Prefix) parts {
	length := uint32(p.Addr().BitLen() / 8)
	mask := make([]byte, length)
	for i := range p.Bits() {
		mask[i/8] |= 1 << (7 - i%8)
	}
	return parts{
		&expr.Payload{OperationType: expr.PayloadLoad, DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: length},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: length, Mask: mask, Xor: make([]byte, length)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: p.Masked().Addr().AsSlice()},
	}
}

func jump(chain string) parts { return parts{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}} }

func ret() parts { return parts{verdict(expr.VerdictReturn)} }

// sorted are the prefixes in an order that does not depend on that of their source, each once and none in another.
func sorted(prefixes []netip.Prefix) (out []netip.Prefix) {
	all := map[netip.Prefix]bool{}
	for _, p := range prefixes {
		all[p.Masked()] = true
	}
	for p := range all {
		covered := false
		for bits := p.Bits() - 1; bits >= 0 && !covered; bits-- {
			wider, _ := p.Addr().Prefix(bits)
			covered = all[wider]
		}
		if !covered {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Addr().Compare(b.Addr()) })
	return out
}
