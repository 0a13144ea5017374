package vpc

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"

	"gvisor.dev/gvisor/pkg/tcpip"
	gvisor "gvisor.dev/gvisor/pkg/tcpip/checksum"
	"gvisor.dev/gvisor/pkg/tcpip/header"
)

var (
	nodeIPv6   = netip.MustParseAddr("2001:db8:0:1::10")
	podIPv6    = netip.MustParseAddr("2001:db8:0:1:10::7") // of the node's prefix
	branchIPv6 = netip.MustParseAddr("2001:db8:0:1::17")
	dbIPv6     = netip.MustParseAddr("2001:db8:0:1::20")
	farIPv6    = netip.MustParseAddr("2001:db8:0:2::30")
	linkLocal  = netip.MustParseAddr("fe80::7")
)

// dualStack is the tests' VPC with IPv6 on all ENIs but one, a prefix on the node's, and rules for IPv6.
func dualStack() *Topology {
	t := testTopology()
	for i, a := range []netip.Addr{nodeIPv6, branchIPv6, {}, dbIPv6, farIPv6} {
		if a.IsValid() {
			t.ENIs[i].Addresses = append(t.ENIs[i].Addresses, a)
		}
	}
	t.ENIs[0].Prefixes = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1:10::/80")}
	all := netip.MustParsePrefix("::/0")
	for i := range t.Groups {
		t.Groups[i].Egress = append(t.Groups[i].Egress, Rule{ID: "sgr-out6", Protocol: -1, FromPort: -1, ToPort: -1, CIDR: all})
	}
	db := groupOf(t, "sg-db")
	db.Ingress = append(db.Ingress,
		Rule{ID: "sgr-web6", Protocol: protoTCP, FromPort: 443, ToPort: 443, CIDR: netip.MustParsePrefix("2001:db8:0:1:10::/80")},
		Rule{ID: "sgr-ping6", Protocol: protoICMPv6, FromPort: icmpv6EchoRequest, ToPort: -1, CIDR: all})
	return t
}

// ipv6Packet has its transport checksum at that place of the transport header; -1: none.
func ipv6Packet(src, dst netip.Addr, proto, hops uint8, t []byte, sumAt int) []byte {
	if sumAt >= 0 {
		sum := header.PseudoHeaderChecksum(tcpip.TransportProtocolNumber(proto), tcpip.AddrFrom16(src.As16()), tcpip.AddrFrom16(dst.As16()), uint16(len(t)))
		binary.BigEndian.PutUint16(t[sumAt:], ^gvisor.Checksum(t, sum))
	}
	b := make([]byte, ipv6HeaderLen, ipv6HeaderLen+len(t))
	b[0], b[6], b[7] = 6<<4, proto, hops
	binary.BigEndian.PutUint16(b[4:], uint16(len(t)))
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	return append(b, t...)
}

func tcp6(src netip.Addr, sport uint16, dst netip.Addr, dport uint16, flags uint8) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, sport)
	binary.BigEndian.PutUint16(t[2:], dport)
	t[12], t[13] = 5<<4, flags
	return ipv6Packet(src, dst, protoTCP, 64, t, 16)
}

func echo6(src, dst netip.Addr, kind uint8) []byte {
	t := make([]byte, 16)
	t[0], t[5] = kind, 7
	return ipv6Packet(src, dst, protoICMPv6, 64, t, 2)
}

func solicit(src, target netip.Addr) []byte {
	t := make([]byte, 24)
	t[0] = icmpv6NeighborSolicit
	copy(t[8:], target.AsSlice())
	return ipv6Packet(src, target, protoICMPv6, onLinkHopLimit, t, 2)
}

func TestTheVPCAnswersWhoAsksForAnIPv6Neighbour(t *testing.T) {
	b := newBed(dualStack())
	for name, c := range map[string]struct {
		vlan   uint16
		from   mac
		src    netip.Addr
		target netip.Addr
		answer mac // zero: none
		router bool
	}{
		"the router":                     {0, nodeMAC, nodeIPv6, RouterIPv6, router1, true},
		"the router, on a VLAN":          {7, branchMAC, linkLocal, RouterIPv6, router1, true},
		"another ENI":                    {0, nodeMAC, linkLocal, dbIPv6, dbMAC, false},
		"another ENI, for a branch":      {7, branchMAC, branchIPv6, dbIPv6, dbMAC, false},
		"an address of a prefix":         {7, branchMAC, branchIPv6, podIPv6, nodeMAC, false},
		"an ENI of another subnet":       {0, nodeMAC, nodeIPv6, farIPv6, mac{}, false},
		"nobody":                         {0, nodeMAC, nodeIPv6, netip.MustParseAddr("2001:db8:0:1::99"), mac{}, false},
		"a duplicate of its own address": {0, nodeMAC, netip.IPv6Unspecified(), nodeIPv6, mac{}, false},
		"whose sender has no address":    {0, nodeMAC, netip.IPv6Unspecified(), dbIPv6, dbMAC, false},
	} {
		v := b.send(nodeENI, frame(mac{0x33, 0x33, 0xff, 0, 0, 1}, c.from, c.vlan, etherIPv6, solicit(c.src, c.target)))
		if c.answer == (mac{}) {
			if v.action == deliver {
				t.Errorf("%s is answered: %s", name, describeVerdict(v))
			}
			continue
		}
		if v.action != deliver || v.out.id != nodeENI {
			t.Errorf("%s: %s", name, describeVerdict(v))
			continue
		}
		e, _ := parseEthernet(v.frame)
		p, ok := parseIPv6(v.frame[e.payload:])
		icmp := header.ICMPv6(v.frame[e.payload+ipv6HeaderLen:])
		sum := header.ICMPv6Checksum(header.ICMPv6ChecksumParams{Header: icmp, Src: tcpip.AddrFrom16(p.src.As16()), Dst: tcpip.AddrFrom16(p.dst.As16())})
		na := header.NDPNeighborAdvert(icmp.MessageBody())
		want := c.src
		if want.IsUnspecified() {
			want = allNodes
		}
		if !ok || e.dst != c.from || e.src != c.answer || e.tagged != (c.vlan != 0) || p.src != c.target || p.dst != want || p.ttl != 255 || icmp.Checksum() != sum ||
			na.TargetAddress() != tcpip.AddrFrom16(c.target.As16()) || na.RouterFlag() != c.router || na.SolicitedFlag() == c.src.IsUnspecified() || !na.OverrideFlag() || mac(icmp[26:32]) != c.answer {
			t.Errorf("%s: % x", name, v.frame)
		}
	}
	spoofed := frame(mac{0x33, 0x33, 0xff, 0, 0, 1}, dbMAC, 0, etherIPv6, solicit(nodeIPv6, dbIPv6))
	wantDrop(t, b.send(nodeENI, spoofed), nodeENI, Egress, SourceMAC)
	far := solicit(nodeIPv6, dbIPv6)
	far[7] = 64 // has passed a router
	wantDrop(t, b.send(nodeENI, frame(router1, nodeMAC, 0, etherIPv6, far)), nodeENI, Egress, Malformed)
}

func TestIPv6PassesByTheRulesOfSecurityGroups(t *testing.T) {
	b := newBed(dualStack())
	fromPod := func(p []byte) verdict { return b.send(nodeENI, frame(router1, nodeMAC, 0, etherIPv6, p)) }
	fromBranch := func(p []byte) verdict { return b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv6, p)) }

	// By the group of the branch ENI, and the answer by the flow.
	wantDelivery(t, fromBranch(tcp6(branchIPv6, 4000, dbIPv6, 5432, tcpSYN)), dbENI)
	v := b.send(dbENI, frame(router1, dbMAC, 0, etherIPv6, tcp6(dbIPv6, 5432, branchIPv6, 4000, tcpSYN|tcpACK)))
	wantDelivery(t, v, nodeENI)
	if e, _ := parseEthernet(v.frame); !e.tagged || e.vlan != 7 || e.dst != branchMAC || e.proto != etherIPv6 || v.frame[e.payload+7] != 63 {
		t.Errorf("% x", v.frame)
	}
	wantDrop(t, fromPod(tcp6(podIPv6, 4000, dbIPv6, 5432, tcpSYN)), dbENI, Ingress, NoRule)

	// By a CIDR, to an ENI of the same subnet and of another.
	for dst, eni := range map[netip.Addr]string{dbIPv6: dbENI, farIPv6: farENI} {
		wantDelivery(t, fromPod(tcp6(podIPv6, 4001, dst, 443, tcpSYN)), eni)
		refused := fromBranch(tcp6(branchIPv6, 4001, dst, 443, tcpSYN))
		wantDrop(t, refused, eni, Ingress, NoRule)
		if !strings.Contains(strings.Join(refused.rules, "\n"), "sgr-web6") {
			t.Errorf("looked up were %q", refused.rules)
		}
	}
	// Past the router, as hosts of one subnet do.
	wantDelivery(t, b.send(nodeENI, frame(dbMAC, nodeMAC, 0, etherIPv6, tcp6(podIPv6, 4002, dbIPv6, 443, tcpSYN))), dbENI)

	wantDelivery(t, fromPod(echo6(podIPv6, dbIPv6, icmpv6EchoRequest)), dbENI)
	wantDelivery(t, b.send(dbENI, frame(router1, dbMAC, 0, etherIPv6, echo6(dbIPv6, podIPv6, icmpv6EchoReply))), nodeENI)
	wantDrop(t, b.send(dbENI, frame(router1, dbMAC, 0, etherIPv6, echo6(dbIPv6, podIPv6, icmpv6EchoRequest))), nodeENI, Ingress, NoRule)

	// An error about a flow goes with it.
	syn := tcp6(podIPv6, 4001, dbIPv6, 443, tcpSYN)
	tooBig := append(make([]byte, 8), syn[:ipv6HeaderLen+8]...)
	tooBig[0] = 2
	wantDelivery(t, b.send(dbENI, frame(router1, dbMAC, 0, etherIPv6, ipv6Packet(dbIPv6, podIPv6, protoICMPv6, 64, tooBig, 2))), nodeENI)
}

func TestIPv6OfSomebodyElseIsDropped(t *testing.T) {
	b := newBed(dualStack())
	send := func(vlan uint16, from mac, p []byte) verdict {
		return b.send(nodeENI, frame(router1, from, vlan, etherIPv6, p))
	}
	wantDrop(t, send(0, nodeMAC, tcp6(branchIPv6, 1, dbIPv6, 443, tcpSYN)), nodeENI, Egress, SourceDestCheck)
	wantDrop(t, send(7, branchMAC, tcp6(podIPv6, 1, dbIPv6, 443, tcpSYN)), branchENI, Egress, SourceDestCheck)
	wantDrop(t, send(0, nodeMAC, tcp6(podIPv6, 1, netip.MustParseAddr("2001:db8:ffff::1"), 443, tcpSYN)), nodeENI, Egress, NoRoute)
	wantDrop(t, send(0, nodeMAC, tcp6(linkLocal, 1, dbIPv6, 443, tcpSYN)), nodeENI, Egress, GroupAddress)
	wantDrop(t, send(0, nodeMAC, ipv6Packet(podIPv6, dbIPv6, protoTCP, 1, tcp6(podIPv6, 1, dbIPv6, 443, tcpSYN)[ipv6HeaderLen:], 16)), nodeENI, Egress, TTLExpired)
}

// A later fragment has no ports: it goes with its first.
func TestFragmentsOfIPv6GoWithTheirFirst(t *testing.T) {
	b := newBed(dualStack())
	fragment := func(id uint32, offset uint16, more bool, t []byte) []byte {
		h := make([]byte, 8)
		h[0] = protoTCP
		flags := offset &^ 7
		if more {
			flags |= 1
		}
		binary.BigEndian.PutUint16(h[2:], flags)
		binary.BigEndian.PutUint32(h[4:], id)
		return frame(router1, nodeMAC, 0, etherIPv6, ipv6Packet(podIPv6, dbIPv6, extFragment, 64, append(h, t...), -1))
	}
	first := tcp6(podIPv6, 4000, dbIPv6, 443, tcpSYN)[ipv6HeaderLen:]
	wantDrop(t, b.send(nodeENI, fragment(1<<20, 1280, false, []byte("rest"))), nodeENI, Egress, NoFirstFragment)
	wantDelivery(t, b.send(nodeENI, fragment(1<<20, 0, true, first)), dbENI)
	wantDelivery(t, b.send(nodeENI, fragment(1<<20, 1280, false, []byte("rest"))), dbENI)
}

// FuzzForwardIPv6 is FuzzForward for IPv6: what is delivered to another ENI is sent in the name of the sender's own.
func FuzzForwardIPv6(f *testing.F) {
	f.Add(tcp6(podIPv6, 4000, dbIPv6, 443, tcpSYN), false)
	f.Add(tcp6(branchIPv6, 4000, dbIPv6, 5432, tcpSYN), true)
	f.Add(solicit(nodeIPv6, RouterIPv6), false)
	f.Add(echo6(podIPv6, dbIPv6, icmpv6EchoRequest), false)
	f.Add(ipv6Packet(podIPv6, dbIPv6, extHopByHop, 64, []byte{extFragment, 0, 0, 0, 0, 0, 0, 0, protoTCP, 0, 0, 1, 0, 0, 0, 9}, -1), false)
	top := dualStack()
	f.Fuzz(func(t *testing.T, ip []byte, branch bool) {
		if len(ip) > MTU {
			return
		}
		from, vlan := nodeMAC, uint16(0)
		if branch {
			from, vlan = branchMAC, 7
		}
		b := newBed(top)
		v := b.send(nodeENI, frame(router1, from, vlan, etherIPv6, ip))
		if v.action != deliver {
			return
		}
		e, ok := parseEthernet(v.frame)
		p, whole := parseIPv6(v.frame[e.payload:])
		if !ok || !whole || e.proto != etherIPv6 {
			t.Fatalf("delivered % x", v.frame)
		}
		if v.out.id == nodeENI && p.proto == protoICMPv6 {
			return // an advertisement
		}
		if o := b.idx.owner(p.src); o == nil || o.mac != from {
			t.Fatalf("delivered % x of %s", v.frame, p.src)
		}
	})
}
