package vpc

import (
	"encoding/binary"
	"net/netip"
)

const (
	ethHeaderLen = 14
	vlanTagLen   = 4
	ipv4MinLen   = 20

	etherIPv4 = 0x0800
	etherIPv6 = 0x86dd
	etherARP  = 0x0806
	etherVLAN = 0x8100

	protoICMP = 1
	protoTCP  = 6
	protoUDP  = 17
)

// TCP flag bits.
const (
	tcpFIN = 1 << iota
	tcpSYN
	tcpRST
	tcpPSH
	tcpACK
)

type mac [6]byte

var broadcastMAC = mac{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// group says whether the address is broadcast or multicast.
func (m mac) group() bool { return m[0]&1 != 0 }

// ip4 is an IPv4 address as a map key without a pointer.
type ip4 [4]byte

func (a ip4) addr() netip.Addr { return netip.AddrFrom4(a) }

var (
	ip4Any       = ip4{}
	ip4Broadcast = ip4{255, 255, 255, 255}
)

func toIP4(a netip.Addr) (ip4, bool) {
	a = a.Unmap()
	if !a.Is4() {
		return ip4{}, false
	}
	return a.As4(), true
}

// ethernet is a parsed Ethernet header with at most one 802.1Q tag.
type ethernet struct {
	dst, src mac
	tagged   bool
	vlan     uint16 // 12 bits
	proto    uint16 // EtherType of the payload
	payload  int    // its offset in the frame
}

func parseEthernet(frame []byte) (ethernet, bool) {
	if len(frame) < ethHeaderLen {
		return ethernet{}, false
	}
	e := ethernet{
		dst:     mac(frame[0:6]),
		src:     mac(frame[6:12]),
		proto:   binary.BigEndian.Uint16(frame[12:14]),
		payload: ethHeaderLen,
	}
	if e.proto != etherVLAN {
		return e, true
	}
	if len(frame) < ethHeaderLen+vlanTagLen {
		return ethernet{}, false
	}
	e.vlan = binary.BigEndian.Uint16(frame[14:16]) & 0x0fff
	// VLAN id 0 means "priority only": the frame belongs to no VLAN.
	e.tagged = e.vlan != 0
	e.proto = binary.BigEndian.Uint16(frame[16:18])
	e.payload = ethHeaderLen + vlanTagLen
	return e, true
}

// arp is an ARP message for IPv4 over Ethernet (RFC 826).
type arp struct {
	op                 uint16
	senderMAC          mac
	senderIP, targetIP ip4
}

const (
	arpLen     = 28
	arpRequest = 1
	arpReply   = 2
)

func parseARP(b []byte) (arp, bool) {
	if len(b) < arpLen || binary.BigEndian.Uint16(b) != 1 || binary.BigEndian.Uint16(b[2:]) != etherIPv4 || b[4] != 6 || b[5] != 4 {
		return arp{}, false
	}
	return arp{
		op:        binary.BigEndian.Uint16(b[6:]),
		senderMAC: mac(b[8:14]),
		senderIP:  ip4(b[14:18]),
		targetIP:  ip4(b[24:28]),
	}, true
}

// packet is what forwarding needs to know of an IP packet.
type packet struct {
	src, dst  netip.Addr
	proto     uint8
	ttl       uint8
	headerLen int
	totalLen  int
	id        uint32
	fragFirst bool // a fragment with offset 0 and more to come
	fragLater bool // a fragment with an offset: has no transport header

	// Transport header. For ICMP only icmpType, icmpCode and, for echoes, icmpID are set.
	srcPort, dstPort   uint16
	tcpFlags           uint8
	icmpType, icmpCode uint8
	icmpID             uint16
	transportOK        bool // the transport header was there and whole
}

// parseIPv4 reads an IPv4 packet and its transport header. It fails on what no host may send: a short or false
// length, a wrong version, a wrong header checksum. A missing transport header is not a failure (transportOK).
func parseIPv4(b []byte) (packet, bool) {
	p, ok := parseIPv4Header(b)
	if !ok || p.totalLen > len(b) || checksum(b[:p.headerLen], 0) != 0 {
		return packet{}, false
	}
	p.parseTransport(b[p.headerLen:p.totalLen])
	return p, true
}

// parseIPv4Header reads the network header only; totalLen may exceed b, as in what an ICMP error quotes.
func parseIPv4Header(b []byte) (packet, bool) {
	if len(b) < ipv4MinLen || b[0]>>4 != 4 {
		return packet{}, false
	}
	p := packet{
		headerLen: int(b[0]&0x0f) * 4,
		totalLen:  int(binary.BigEndian.Uint16(b[2:])),
		id:        uint32(binary.BigEndian.Uint16(b[4:])),
		ttl:       b[8],
		proto:     b[9],
		src:       ip4(b[12:16]).addr(),
		dst:       ip4(b[16:20]).addr(),
	}
	if p.headerLen < ipv4MinLen || p.headerLen > p.totalLen || p.headerLen > len(b) {
		return packet{}, false
	}
	frag := binary.BigEndian.Uint16(b[6:])
	p.fragLater = frag&0x1fff != 0
	p.fragFirst = !p.fragLater && frag&0x2000 != 0
	return p, true
}

// parseTransport reads ports, flags, or ICMP's type from the transport header t.
func (p *packet) parseTransport(t []byte) {
	if p.fragLater {
		return
	}
	switch p.proto {
	case protoTCP:
		if len(t) >= 20 {
			p.readPorts(t)
			p.tcpFlags = t[13]
			p.transportOK = true
		}
	case protoUDP:
		if len(t) >= 8 {
			p.readPorts(t)
			p.transportOK = true
		}
	case protoICMP:
		if len(t) >= 8 {
			p.icmpType, p.icmpCode = t[0], t[1]
			if p.isEcho() {
				p.icmpID = binary.BigEndian.Uint16(t[4:])
			}
			p.transportOK = true
		}
	case protoICMPv6:
		p.parseICMPv6(t)
	default:
		p.transportOK = true
	}
}

func (p *packet) readPorts(t []byte) {
	p.srcPort = binary.BigEndian.Uint16(t)
	p.dstPort = binary.BigEndian.Uint16(t[2:])
}

const (
	icmpEchoReply    = 0
	icmpUnreachable  = 3
	icmpEchoRequest  = 8
	icmpTimeExceeded = 11
	icmpParameter    = 12
)

func (p *packet) isEcho() bool {
	if p.proto == protoICMPv6 {
		return p.icmpType == icmpv6EchoRequest || p.icmpType == icmpv6EchoReply
	}
	return p.icmpType == icmpEchoRequest || p.icmpType == icmpEchoReply
}

// asks says whether an echo is a request.
func (p *packet) asks() bool { return p.icmpType == icmpEchoRequest || p.icmpType == icmpv6EchoRequest }

func (p *packet) isICMP() bool { return p.proto == protoICMP || p.proto == protoICMPv6 }

// isICMPError says whether the packet reports on another one, which it quotes.
func (p *packet) isICMPError() bool {
	if p.proto == protoICMPv6 {
		return p.transportOK && p.icmpType < icmpv6EchoRequest
	}
	return p.proto == protoICMP && p.transportOK &&
		(p.icmpType == icmpUnreachable || p.icmpType == icmpTimeExceeded || p.icmpType == icmpParameter)
}

// parseQuoted reads the packet that the ICMP error in ip (an IPv4 packet that parseIPv4 took as p) quotes. RFC 792 promises
// its first 8 bytes of transport header only.
func parseQuoted(ip []byte, p *packet) (packet, bool) {
	q := ip[p.headerLen+8 : p.totalLen]
	parse := parseIPv4Header
	if p.proto == protoICMPv6 {
		parse = parseIPv6Header
	}
	in, ok := parse(q)
	if !ok || in.fragLater {
		return packet{}, false
	}
	t := q[in.headerLen:]
	if len(t) < 8 {
		return packet{}, false
	}
	switch in.proto {
	case protoTCP, protoUDP:
		in.readPorts(t)
	case protoICMP, protoICMPv6:
		in.icmpType, in.icmpCode = t[0], t[1]
		if !in.isEcho() {
			return packet{}, false // an error about an error
		}
		in.icmpID = binary.BigEndian.Uint16(t[4:])
	}
	in.transportOK = true
	return in, true
}

// checksum is the internet checksum (RFC 1071) over b, continued from sum. Over data that contains its right checksum it is 0.
func checksum(b []byte, sum uint32) uint16 {
	for len(b) >= 2 {
		sum += uint32(b[0])<<8 | uint32(b[1])
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// setTTL changes the TTL of an IPv4 header and its checksum with it, incrementally (RFC 1624, equation 3).
func setTTL(ip []byte, ttl uint8) {
	oldWord := uint32(ip[8])<<8 | uint32(ip[9])
	ip[8] = ttl
	newWord := uint32(ip[8])<<8 | uint32(ip[9])
	sum := uint32(^binary.BigEndian.Uint16(ip[10:])) + (^oldWord & 0xffff) + newWord
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	binary.BigEndian.PutUint16(ip[10:], ^uint16(sum))
}
