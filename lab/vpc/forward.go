package vpc

import (
	"encoding/binary"
	"net/netip"
	"time"
)

// headroom is what forward may use before the frame to put a 802.1Q tag in without copying the payload.
const headroom = vlanTagLen

// fabricState is what forwarding depends on.
type fabricState struct {
	idx      *index
	services map[netip.Addr]bool // addresses that the fabric answers itself
	idle     IdleTimeouts
	frags    fragments
	domain   string
}

type action uint8

const (
	ignore  action = iota // nothing to do, and nothing is lost
	drop                  // reason, at and dir say why and where
	deliver               // frame goes out of the port of out
	serve                 // ip is for the service stack of at
)

// verdict is what to do with one frame.
type verdict struct {
	action action
	out    *eniState
	frame  []byte // may alias the input
	ip     []byte // aliases the input

	at     *eni
	dir    Direction
	reason Reason
	rules  []string
	vlan   uint16

	pkt    packet
	hasPkt bool
	// seen is for the flow log: what each ENI's security groups said.
	seen [2]observation
}

// observation is a packet at an ENI, let through or not.
type observation struct {
	eni      string
	accepted bool
}

func (v verdict) dropped(at *eni, d Direction, r Reason) verdict {
	v.action, v.at, v.dir, v.reason = drop, at, d, r
	return v
}

// forward decides what becomes of the frame buf[headroom:] that came in by the port of ENI in. Beside the verdict it changes only
// the tracked flows and known fragments, and the bytes of buf.
func (s *fabricState) forward(now time.Time, in *eni, buf []byte) verdict {
	var v verdict
	frame := buf[headroom:]
	eth, ok := parseEthernet(frame)
	if !ok {
		return v.dropped(in, Egress, Malformed)
	}
	src := in
	if eth.tagged {
		v.vlan = eth.vlan
		if src = in.branches[eth.vlan]; src == nil {
			return v.dropped(in, Egress, UnknownVLAN)
		}
	}
	if eth.src != src.mac {
		return v.dropped(src, Egress, SourceMAC)
	}
	if !src.attached {
		return v.dropped(src, Egress, NotAttached)
	}
	switch eth.proto {
	case etherARP:
		return s.answerARP(v, src, frame[eth.payload:])
	case etherIPv4:
		return s.forwardIPv4(now, v, src, eth, buf)
	case etherIPv6:
		return s.forwardIPv6(now, v, src, eth, buf)
	}
	return v.dropped(src, Egress, NotIP)
}

func (s *fabricState) answerARP(v verdict, src *eni, b []byte) verdict {
	a, ok := parseARP(b)
	switch {
	case !ok:
		return v.dropped(src, Egress, Malformed)
	case a.senderMAC != src.mac:
		return v.dropped(src, Egress, SourceMAC)
	case a.op != arpRequest:
		return v
	}
	owner := s.idx.owner(a.targetIP.addr())
	answer := src.subnet.routerMAC
	switch {
	case owner == src:
		return v // it announces its address, or probes for a duplicate: there is none
	case a.targetIP == src.subnet.gateway, s.services[a.targetIP.addr()]:
	case owner != nil && owner.subnet == src.subnet:
		answer = owner.mac
	default:
		return v.dropped(src, Egress, ARPNoOwner)
	}
	v.action, v.out = deliver, src.port()
	v.frame = buildARPReply(src, a, answer)
	return v
}

func (s *fabricState) forwardIPv4(now time.Time, v verdict, src *eni, eth ethernet, buf []byte) verdict {
	ip := buf[headroom+eth.payload:]
	p, ok := parseIPv4(ip)
	if !ok {
		return v.dropped(src, Egress, Malformed)
	}
	ip = ip[:p.totalLen] // without Ethernet's padding
	v.pkt, v.hasPkt = p, true
	if p.totalLen > MTU {
		return v.dropped(src, Egress, TooBig)
	}
	if p.proto == protoUDP && p.dstPort == dhcpServerPort && !src.isBranch() && (p.dst == ip4Broadcast.addr() || p.dst == src.subnet.gateway.addr()) {
		if reply := s.answerDHCP(src, ip[p.headerLen+8:]); reply != nil {
			v.action, v.out, v.frame = deliver, src.port(), reply
		}
		return v
	}
	if eth.dst.group() || p.dst.As4()[0] >= 224 {
		return v.dropped(src, Egress, GroupAddress)
	}
	return s.route(now, v, src, eth, p, buf)
}

// route is for a packet of either family that is whole and for one receiver.
func (s *fabricState) route(now time.Time, v verdict, src *eni, eth ethernet, p packet, buf []byte) verdict {
	ip := buf[headroom+eth.payload:][:p.totalLen]
	if src.check && s.idx.owner(p.src) != src {
		return v.dropped(src, Egress, SourceDestCheck)
	}
	routed := eth.dst == src.subnet.routerMAC
	if s.services[p.dst] {
		if !routed {
			return v.dropped(src, Egress, UnknownMAC)
		}
		v.action, v.at, v.ip = serve, src, ip
		return v
	}
	dst := s.idx.owner(p.dst)
	if !routed {
		via := s.idx.byMAC[eth.dst]
		switch {
		case via == nil || via.subnet != src.subnet:
			return v.dropped(src, Egress, UnknownMAC)
		case via != dst && via.check:
			return v.dropped(via, Ingress, SourceDestCheck)
		}
		dst = via
	}
	if !s.frags.complete(now, &p) {
		return v.dropped(src, Egress, NoFirstFragment)
	}
	if !p.transportOK {
		return v.dropped(src, Egress, Malformed)
	}
	v.pkt = p
	var quoted *packet
	if p.isICMPError() && !p.fragLater {
		if q, ok := parseQuoted(ip, &p); ok {
			quoted = &q
		}
	}
	if r := s.admit(now, src, Egress, &p, quoted); r != "" {
		return s.refused(v, 0, src, Egress, r)
	}
	v.seen[0] = observation{src.id, true}
	switch {
	case dst == nil:
		return v.dropped(src, Egress, NoRoute)
	case routed && p.ttl <= 1:
		return v.dropped(src, Egress, TTLExpired)
	case !dst.attached:
		return v.dropped(dst, Ingress, NotAttached)
	}
	if r := s.admit(now, dst, Ingress, &p, quoted); r != "" {
		return s.refused(v, 1, dst, Ingress, r)
	}
	v.seen[1] = observation{dst.id, true}
	from := src.mac
	if routed {
		decrement(ip, p.ttl-1)
		from = dst.subnet.routerMAC
	}
	v.action, v.at, v.dir, v.out = deliver, dst, Ingress, dst.port()
	v.frame = frameTo(dst, from, buf[:headroom+eth.payload+p.totalLen], headroom+eth.payload)
	binary.BigEndian.PutUint16(buf[headroom+eth.payload-2:], eth.proto)
	return v
}

func (s *fabricState) refused(v verdict, side int, at *eni, d Direction, r Reason) verdict {
	v.seen[side] = observation{at.id, false}
	if r == NoRule {
		v.rules = s.idx.explain(at, d, &v.pkt)
	}
	return v.dropped(at, d, r)
}

// frameTo puts an Ethernet header for ENI dst, tagged if it is a branch, right before the packet buf[payload:], as IPv4's.
// There must be room for it.
func frameTo(dst *eni, from mac, buf []byte, payload int) []byte {
	n := ethHeaderLen
	if dst.isBranch() {
		n += vlanTagLen
	}
	frame := buf[payload-n:]
	copy(frame[0:6], dst.mac[:])
	copy(frame[6:12], from[:])
	if dst.isBranch() {
		binary.BigEndian.PutUint16(frame[12:], etherVLAN)
		binary.BigEndian.PutUint16(frame[14:], dst.vlan)
	}
	binary.BigEndian.PutUint16(frame[n-2:], etherIPv4)
	return frame
}

// buildARPReply answers the request a of ENI src: the target's MAC is answer.
func buildARPReply(src *eni, a arp, answer mac) []byte {
	buf := make([]byte, ethHeaderLen+vlanTagLen+arpLen)
	frame := frameTo(src, answer, buf, ethHeaderLen+vlanTagLen)
	b := frame[len(frame)-arpLen:]
	binary.BigEndian.PutUint16(frame[len(frame)-arpLen-2:], etherARP)
	binary.BigEndian.PutUint16(b[0:], 1)
	binary.BigEndian.PutUint16(b[2:], etherIPv4)
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], arpReply)
	copy(b[8:], answer[:])
	copy(b[14:], a.targetIP[:])
	copy(b[18:], a.senderMAC[:])
	copy(b[24:], a.senderIP[:])
	return frame
}
