package vpc

import (
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	ipv6HeaderLen = 40
	protoICMPv6   = 58

	// Extension headers (RFC 8200). Those of security are not looked behind.
	extHopByHop    = 0
	extRouting     = 43
	extFragment    = 44
	extDestination = 60

	icmpv6EchoRequest     = 128
	icmpv6EchoReply       = 129
	icmpv6RouterSolicit   = 133
	icmpv6NeighborSolicit = 135
	icmpv6NeighborAdvert  = 136

	// RFC 4861: flags of an advertisement, its options, and the hop limit that says that it comes from this link.
	advertRouter, advertSolicited, advertOverride = 0x80, 0x40, 0x20
	optionTargetMAC                               = 2
	onLinkHopLimit                                = 255
)

// RouterIPv6 is the VPC router's address on each ENI.
var RouterIPv6 = netip.MustParseAddr("fe80:ec2::1")

var allNodes = netip.MustParseAddr("ff02::1")

// owner is the ENI that has the address, by itself or in a prefix; nil: none.
func (x *index) owner(a netip.Addr) *eni {
	if e := x.byIP[a]; e != nil || a.Is4() || len(x.byPrefix) == 0 {
		return e
	}
	p, err := a.Prefix(80)
	if err != nil {
		return nil
	}
	return x.byPrefix[p]
}

// parseIPv6 reads an IPv6 packet and its transport header, as parseIPv4 does.
func parseIPv6(b []byte) (packet, bool) {
	p, ok := parseIPv6Header(b)
	if !ok || p.totalLen > len(b) {
		return packet{}, false
	}
	p.parseTransport(b[p.headerLen:p.totalLen])
	return p, true
}

// parseIPv6Header reads the network header and what extends it; totalLen may exceed b, as in what an ICMP error quotes.
func parseIPv6Header(b []byte) (packet, bool) {
	if len(b) < ipv6HeaderLen || b[0]>>4 != 6 {
		return packet{}, false
	}
	p := packet{
		headerLen: ipv6HeaderLen, totalLen: ipv6HeaderLen + int(binary.BigEndian.Uint16(b[4:])), proto: b[6], ttl: b[7],
		src: netip.AddrFrom16([16]byte(b[8:24])), dst: netip.AddrFrom16([16]byte(b[24:40])),
	}
	if p.src.Is4In6() || p.dst.Is4In6() { // RFC 4291, 2.5.5.2: never on the wire
		return packet{}, false
	}
	for {
		switch p.proto {
		case extHopByHop, extRouting, extDestination, extFragment:
		default:
			return p, p.headerLen <= p.totalLen
		}
		at := p.headerLen
		if at+8 > min(len(b), p.totalLen) {
			return packet{}, false
		}
		n := 8 + 8*int(b[at+1])
		if p.proto == extFragment {
			n = 8
			offset := binary.BigEndian.Uint16(b[at+2:])
			p.fragLater = offset>>3 != 0
			p.fragFirst = !p.fragLater && offset&1 != 0
			p.id = binary.BigEndian.Uint32(b[at+4:])
		}
		p.proto, p.headerLen = b[at], at+n
		if p.headerLen > min(len(b), p.totalLen) {
			return packet{}, false
		}
		if p.fragLater {
			return p, true // what follows is the middle of something
		}
	}
}

func (p *packet) parseICMPv6(t []byte) {
	if len(t) < 8 {
		return
	}
	p.icmpType, p.icmpCode = t[0], t[1]
	if p.isEcho() {
		p.icmpID = binary.BigEndian.Uint16(t[4:])
	}
	p.transportOK = true
}

// decrement writes a lower TTL or hop limit into a packet of either family.
func decrement(ip []byte, ttl uint8) {
	if ip[0]>>4 == 6 {
		ip[7] = ttl
		return
	}
	setTTL(ip, ttl)
}

// forwardIPv6 answers neighbour discovery as the VPC does, for every address of the subnet and for the router, and forwards
// the rest. Multicast reaches nobody.
func (s *fabricState) forwardIPv6(now time.Time, v verdict, src *eni, eth ethernet, buf []byte) verdict {
	ip := buf[headroom+eth.payload:]
	p, ok := parseIPv6(ip)
	if !ok {
		return v.dropped(src, Egress, Malformed)
	}
	v.pkt, v.hasPkt = p, true
	if p.totalLen > MTU {
		return v.dropped(src, Egress, TooBig)
	}
	if p.proto == protoICMPv6 && !p.fragLater && p.transportOK && p.icmpType >= icmpv6RouterSolicit && p.icmpType <= icmpv6NeighborAdvert {
		return s.answerNDP(v, src, &p, ip[p.headerLen:p.totalLen])
	}
	if eth.dst.group() || p.dst.IsMulticast() || p.src.IsLinkLocalUnicast() || p.dst.IsLinkLocalUnicast() || p.src.IsUnspecified() {
		return v.dropped(src, Egress, GroupAddress)
	}
	return s.route(now, v, src, eth, p, buf)
}

// answerNDP answers who asks for an address's MAC. Its sender address is not checked, only its MAC, as with ARP.
func (s *fabricState) answerNDP(v verdict, src *eni, p *packet, t []byte) verdict {
	if p.icmpType != icmpv6NeighborSolicit {
		return v.dropped(src, Egress, GroupAddress) // routers are not announced, and advertisements reach nobody
	}
	if len(t) < 24 || p.ttl != onLinkHopLimit || p.icmpCode != 0 || checksum(t, pseudoSum(p.src, p.dst, protoICMPv6, len(t))) != 0 {
		return v.dropped(src, Egress, Malformed)
	}
	target := netip.AddrFrom16([16]byte(t[8:24]))
	owner, answer, flags := s.idx.owner(target), src.subnet.routerMAC, byte(advertOverride)
	switch {
	case owner == src:
		return v // it looks for a duplicate: there is none
	case target == RouterIPv6:
		flags |= advertRouter
	case owner != nil && owner.subnet == src.subnet:
		answer = owner.mac
	default:
		return v.dropped(src, Egress, ARPNoOwner)
	}
	v.action, v.out = deliver, src.port()
	v.frame = buildAdvertisement(src, p.src, target, answer, flags)
	return v
}

// buildAdvertisement tells ENI src, which asked from the address to, that the target's MAC is answer.
func buildAdvertisement(src *eni, to, target netip.Addr, answer mac, flags byte) []byte {
	const length = 32 // with one option
	if to.IsUnspecified() {
		to = allNodes
	} else {
		flags |= advertSolicited
	}
	const payload = ethHeaderLen + vlanTagLen
	buf := make([]byte, payload+ipv6HeaderLen+length)
	frame := frameTo(src, answer, buf, payload)
	binary.BigEndian.PutUint16(buf[payload-2:], etherIPv6)
	ip := buf[payload:]
	ip[0] = 6 << 4
	binary.BigEndian.PutUint16(ip[4:], length)
	ip[6], ip[7] = protoICMPv6, onLinkHopLimit
	copy(ip[8:], target.AsSlice())
	copy(ip[24:], to.AsSlice())
	t := ip[ipv6HeaderLen:]
	t[0], t[4] = icmpv6NeighborAdvert, flags
	copy(t[8:], target.AsSlice())
	t[24], t[25] = optionTargetMAC, 1
	copy(t[26:], answer[:])
	binary.BigEndian.PutUint16(t[2:], checksum(t, pseudoSum(target, to, protoICMPv6, length)))
	return frame
}

// pseudoSum is what a transport checksum adds of the IPv6 header (RFC 8200, 8.1).
func pseudoSum(src, dst netip.Addr, proto uint8, length int) (sum uint32) {
	for _, a := range []netip.Addr{src, dst} {
		b := a.As16()
		for i := 0; i < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
	}
	return sum + uint32(proto) + uint32(length)
}
