package vpc

import (
	"encoding/binary"
	"fmt"
)

const (
	dhcpServerPort = 67
	dhcpClientPort = 68

	bootpLen   = 236 // fixed part of a BOOTP message (RFC 951)
	dhcpMagic  = 0x63825363
	leaseHours = 1

	dhcpDiscover = 1
	dhcpOffer    = 2
	dhcpRequest  = 3
	dhcpACK      = 5
	dhcpNAK      = 6
	dhcpInform   = 8
)

// DHCP options (RFC 2132).
const (
	optPad         = 0
	optMask        = 1
	optRouter      = 3
	optDNS         = 6
	optHostName    = 12
	optDomain      = 15
	optMTU         = 26
	optRequestedIP = 50
	optLease       = 51
	optMessageType = 53
	optServerID    = 54
	optEnd         = 255
)

// dhcpMessage is what the server needs of a client's message.
type dhcpMessage struct {
	xid       uint32
	broadcast bool
	clientIP  ip4
	clientMAC mac
	kind      byte
	requested ip4 // option 50, or zero
	serverID  ip4 // option 54, or zero
}

func parseDHCP(b []byte) (dhcpMessage, bool) {
	if len(b) < bootpLen+4 || b[0] != 1 || b[1] != 1 || b[2] != 6 || binary.BigEndian.Uint32(b[bootpLen:]) != dhcpMagic {
		return dhcpMessage{}, false
	}
	m := dhcpMessage{
		xid:       binary.BigEndian.Uint32(b[4:]),
		broadcast: b[10]&0x80 != 0,
		clientIP:  ip4(b[12:16]),
		clientMAC: mac(b[28:34]),
	}
	for o := b[bootpLen+4:]; len(o) > 0 && o[0] != optEnd; {
		if o[0] == optPad {
			o = o[1:]
			continue
		}
		if len(o) < 2 || len(o) < 2+int(o[1]) {
			return dhcpMessage{}, false
		}
		v := o[2 : 2+int(o[1])]
		switch {
		case o[0] == optMessageType && len(v) == 1:
			m.kind = v[0]
		case o[0] == optRequestedIP && len(v) == 4:
			m.requested = ip4(v)
		case o[0] == optServerID && len(v) == 4:
			m.serverID = ip4(v)
		}
		o = o[2+len(v):]
	}
	return m, m.kind != 0
}

// answerDHCP returns the frame that answers a client on the ENI's untagged network, or nil. There is one lease: the ENI's
// primary address. msg is UDP's payload.
func (s *fabricState) answerDHCP(e *eni, msg []byte) []byte {
	m, ok := parseDHCP(msg)
	if !ok || m.clientMAC != e.mac || len(e.ips) == 0 {
		return nil
	}
	if m.serverID != ip4Any && m.serverID != e.subnet.gateway {
		return nil // it chose another server's offer
	}
	var kind byte
	switch m.kind {
	case dhcpDiscover:
		kind = dhcpOffer
	case dhcpRequest:
		wants := m.requested
		if wants == ip4Any {
			wants = m.clientIP
		}
		kind = dhcpACK
		if wants != e.ips[0] {
			kind = dhcpNAK
		}
	case dhcpInform:
		kind = dhcpACK
	default:
		return nil
	}
	return s.buildDHCPReply(e, m, kind)
}

func (s *fabricState) buildDHCPReply(e *eni, m dhcpMessage, kind byte) []byte {
	const payload = ethHeaderLen + ipv4MinLen + 8
	buf := make([]byte, payload+bootpLen, payload+bootpLen+128)
	b := buf[payload:]
	b[0], b[1], b[2] = 2, 1, 6
	binary.BigEndian.PutUint32(b[4:], m.xid)
	if m.broadcast {
		b[10] = 0x80
	}
	copy(b[12:], m.clientIP[:])
	if kind != dhcpNAK && m.kind != dhcpInform {
		copy(b[16:], e.ips[0][:])
	}
	copy(b[28:], m.clientMAC[:])

	opt := func(code byte, v ...byte) {
		buf = append(append(buf, code, byte(len(v))), v...)
	}
	buf = binary.BigEndian.AppendUint32(buf, dhcpMagic)
	opt(optMessageType, kind)
	opt(optServerID, e.subnet.gateway[:]...)
	if kind != dhcpNAK {
		ip := e.ips[0]
		mask := ^uint32(0) << (32 - e.subnet.cidr.Bits())
		if m.kind != dhcpInform {
			opt(optLease, binary.BigEndian.AppendUint32(nil, leaseHours*3600)...)
		}
		opt(optMask, binary.BigEndian.AppendUint32(nil, mask)...)
		opt(optRouter, e.subnet.gateway[:]...)
		opt(optDNS, s.idx.dns[:]...)
		opt(optMTU, binary.BigEndian.AppendUint16(nil, MTU)...)
		opt(optHostName, fmt.Appendf(nil, "ip-%d-%d-%d-%d", ip[0], ip[1], ip[2], ip[3])...)
		if s.domain != "" && len(s.domain) < 256 {
			opt(optDomain, []byte(s.domain)...)
		}
	}
	buf = append(buf, optEnd)

	// The client has no address yet: to its MAC, and to the address that it will have, unless it can't take that.
	dst := e.ips[0]
	if m.broadcast || kind == dhcpNAK {
		dst = ip4Broadcast
	}
	udp := buf[ethHeaderLen+ipv4MinLen:]
	binary.BigEndian.PutUint16(udp[0:], dhcpServerPort)
	binary.BigEndian.PutUint16(udp[2:], dhcpClientPort)
	binary.BigEndian.PutUint16(udp[4:], uint16(len(udp)))
	putIPv4Header(buf[ethHeaderLen:], e.subnet.gateway, dst, protoUDP)
	putTransportChecksum(buf[ethHeaderLen:], 6)
	return frameTo(e, e.subnet.routerMAC, buf, ethHeaderLen)
}

// putIPv4Header writes a header without options for the packet that fills ip.
func putIPv4Header(ip []byte, src, dst ip4, proto uint8) {
	ip[0] = 0x45
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	ip[8], ip[9] = 64, proto
	copy(ip[12:], src[:])
	copy(ip[16:], dst[:])
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipv4MinLen], 0))
}

// putTransportChecksum fills in the checksum of TCP or UDP at offset off of the transport header of ip, a packet without options.
func putTransportChecksum(ip []byte, off int) {
	t := ip[ipv4MinLen:]
	binary.BigEndian.PutUint16(t[off:], 0)
	// The pseudo-header: addresses, protocol, length.
	sum := uint32(ip[9]) + uint32(len(t))
	for i := 12; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(ip[i:]))
	}
	c := checksum(t, sum)
	if c == 0 && ip[9] == protoUDP {
		c = 0xffff // 0 would mean that there is none
	}
	binary.BigEndian.PutUint16(t[off:], c)
}
