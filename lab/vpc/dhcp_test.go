package vpc

import (
	"encoding/binary"
	"testing"

	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func dhcpClientMessage(m mac, kind byte, options ...byte) []byte {
	b := make([]byte, bootpLen)
	b[0], b[1], b[2] = 1, 1, 6
	binary.BigEndian.PutUint32(b[4:], 0xabcdef01)
	copy(b[28:], m[:])
	b = binary.BigEndian.AppendUint32(b, dhcpMagic)
	b = append(b, optMessageType, 1, kind)
	b = append(b, options...)
	return append(b, optEnd)
}

// dhcpOptions parses an answer with its own reading of RFC 2132.
func dhcpOptions(t *testing.T, frame []byte) (yiaddr ip4, opts map[byte][]byte) {
	t.Helper()
	ip := header.IPv4(frame[ethHeaderLen:])
	if !ip.IsChecksumValid() || ip.TransportProtocol() != header.UDPProtocolNumber {
		t.Fatalf("not a UDP packet: % x", frame)
	}
	u := header.UDP(ip.Payload())
	if u.SourcePort() != 67 || u.DestinationPort() != 68 {
		t.Fatalf("ports %d > %d", u.SourcePort(), u.DestinationPort())
	}
	if !u.IsChecksumValid(ip.SourceAddress(), ip.DestinationAddress(), gvisor.Checksum(u.Payload(), 0)) {
		t.Fatal("UDP checksum")
	}
	b := u.Payload()
	if b[0] != 2 || binary.BigEndian.Uint32(b[4:]) != 0xabcdef01 {
		t.Fatalf("no answer to the message: % x", b[:8])
	}
	opts = map[byte][]byte{}
	for o := b[bootpLen+4:]; o[0] != optEnd; o = o[2+int(o[1]):] {
		opts[o[0]] = o[2 : 2+int(o[1])]
	}
	return ip4(b[16:20]), opts
}

func TestDHCPGivesThePrimaryAddress(t *testing.T) {
	b := newBed(testTopology())
	for kind, want := range map[byte]byte{dhcpDiscover: dhcpOffer, dhcpRequest: dhcpACK} {
		msg := dhcpClientMessage(nodeMAC, kind, optRequestedIP, 4, 192, 168, 0, 10)
		v := b.send(nodeENI, frame(broadcastMAC, nodeMAC, 0, etherIPv4, udpPacket(ip4Any, 68, ip4Broadcast, 67, msg)))
		wantDelivery(t, v, nodeENI)
		ip, opts := dhcpOptions(t, v.frame)
		if ip != nodeIP || opts[optMessageType][0] != want {
			t.Fatalf("address %v, type %v", ip, opts[optMessageType])
		}
		for code, want := range map[byte]string{
			optMask: "\xff\xff\xe0\x00", optRouter: string(gateway1[:]), optDNS: "\xc0\xa8\x00\x02", optMTU: "\x23\x29",
			optHostName: "ip-192-168-0-10", optServerID: string(gateway1[:]), optLease: "\x00\x00\x0e\x10",
		} {
			if string(opts[code]) != want {
				t.Errorf("option %d is % x, want % x", code, opts[code], want)
			}
		}
	}
}

func TestDHCPRefusesAnotherAddress(t *testing.T) {
	b := newBed(testTopology())
	msg := dhcpClientMessage(nodeMAC, dhcpRequest, optRequestedIP, 4, 192, 168, 0, 20)
	v := b.send(nodeENI, frame(broadcastMAC, nodeMAC, 0, etherIPv4, udpPacket(ip4Any, 68, ip4Broadcast, 67, msg)))
	if ip, opts := dhcpOptions(t, v.frame); ip != ip4Any || opts[optMessageType][0] != dhcpNAK {
		t.Fatalf("address %v, type %v", ip, opts[optMessageType])
	}
}

func TestDHCPIsForUntaggedTrafficAndOwnMACOnly(t *testing.T) {
	b := newBed(testTopology())
	discover := func(client mac) []byte {
		return udpPacket(ip4Any, 68, ip4Broadcast, 67, dhcpClientMessage(client, dhcpDiscover))
	}
	wantDrop(t, b.send(nodeENI, frame(broadcastMAC, branchMAC, 7, etherIPv4, discover(branchMAC))), branchENI, Egress, GroupAddress)
	if v := b.send(nodeENI, frame(broadcastMAC, nodeMAC, 0, etherIPv4, discover(dbMAC))); v.action != ignore {
		t.Fatalf("got %s", describeVerdict(v))
	}
}
