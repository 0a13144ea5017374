package vpc

import (
	"bytes"
	"encoding/binary"
	"testing"

	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"pgregory.net/rapid"
)

func TestIncrementalTTLChecksumEqualsAFreshOne(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ip := ipPacket(ip4(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "src")), ip4(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "dst")), rapid.Byte().Draw(t, "proto"), nil)
		binary.BigEndian.PutUint16(ip[4:], rapid.Uint16().Draw(t, "id"))
		header.IPv4(ip).SetChecksum(0)
		header.IPv4(ip).SetChecksum(^header.IPv4(ip).CalculateChecksum())
		setTTL(ip, rapid.Byte().Draw(t, "ttl"))
		if !header.IPv4(ip).IsChecksumValid() {
			t.Fatalf("checksum of % x", ip)
		}
	})
}

func TestChecksumAgreesWithGVisor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := rapid.SliceOf(rapid.Byte()).Draw(t, "bytes")
		if got, want := checksum(b, 0), ^gvisor.Checksum(b, 0); got != want {
			t.Fatalf("%#x, want %#x", got, want)
		}
	})
}

func TestTheIPv4HeaderMustBeWhole(t *testing.T) {
	good := tcpPacket(nodeIP, 1, dbIP, 2, tcpSYN)
	for name, change := range map[string]func(b []byte) []byte{
		"empty":              func([]byte) []byte { return nil },
		"version 6":          func(b []byte) []byte { b[0] = 0x65; return b },
		"short header":       func(b []byte) []byte { b[0] = 0x44; return b },
		"header beyond end":  func(b []byte) []byte { b[0] = 0x4f; return b },
		"length beyond end":  func(b []byte) []byte { return b[:39] },
		"length within head": func(b []byte) []byte { b[3] = 19; return b },
		"wrong checksum":     func(b []byte) []byte { b[10]++; return b },
	} {
		if _, ok := parseIPv4(change(bytes.Clone(good))); ok {
			t.Errorf("%s: accepted", name)
		}
	}
	p, ok := parseIPv4(good)
	if !ok || !p.transportOK || p.srcPort != 1 || p.dstPort != 2 || p.tcpFlags != tcpSYN {
		t.Errorf("the good one: %+v, %v", p, ok)
	}
}

func seedFrames() [][]byte {
	syn := tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN)
	return [][]byte{
		frame(router1, branchMAC, 7, etherIPv4, syn),
		frame(router1, nodeMAC, 0, etherIPv4, icmpError(nodeIP, icmpUnreachable, syn)),
		frame(router1, nodeMAC, 0, etherIPv4, echoPacket(nodeIP, dbIP, icmpEchoRequest, 1)),
		frame(broadcastMAC, nodeMAC, 0, etherARP, arpMessage(arpRequest, nodeMAC, nodeIP, gateway1)),
		frame(broadcastMAC, nodeMAC, 0, etherIPv4, udpPacket(ip4Any, 68, ip4Broadcast, 67, dhcpClientMessage(nodeMAC, dhcpDiscover))),
		frame(broadcastMAC, nodeMAC, 0, etherVLAN, nil),
	}
}

// FuzzForward feeds the whole decision with frames from an instance that means ill: it must not panic, nor deliver in
// another's name.
func FuzzForward(f *testing.F) {
	for _, s := range seedFrames() {
		f.Add(s, false)
		f.Add(s, true)
	}
	top := testTopology()
	f.Fuzz(func(t *testing.T, in []byte, fixChecksum bool) {
		if len(in) > maxFrame {
			return
		}
		if e, ok := parseEthernet(in); ok && fixChecksum && e.proto == etherIPv4 {
			if p, ok := parseIPv4Header(in[e.payload:]); ok {
				h := header.IPv4(in[e.payload:][:p.headerLen])
				h.SetChecksum(0)
				h.SetChecksum(^gvisor.Checksum(h, 0))
			}
		}
		b := newBed(top)
		v := b.send(nodeENI, in)
		if v.action != deliver {
			return
		}
		e, ok := parseEthernet(v.frame)
		if !ok {
			t.Fatalf("delivered a malformed frame % x", v.frame)
		}
		if e.proto != etherIPv4 || e.dst == nodeMAC && !e.tagged {
			return
		}
		p, ok := parseIPv4(v.frame[e.payload:])
		if !ok || b.idx.byIP[p.src] == nil || b.idx.byIP[p.src].port().id != nodeENI {
			t.Fatalf("delivered % x", v.frame)
		}
	})
}

func FuzzParseDHCP(f *testing.F) {
	f.Add(dhcpClientMessage(nodeMAC, dhcpDiscover))
	f.Add(dhcpClientMessage(nodeMAC, dhcpRequest, optRequestedIP, 4, 192, 168, 0, 10))
	f.Fuzz(func(t *testing.T, in []byte) {
		if m, ok := parseDHCP(in); ok && m.kind == 0 {
			t.Fatal("a message without a type")
		}
		b := newBed(testTopology())
		b.answerDHCP(b.idx.enis[nodeENI], in)
	})
}
