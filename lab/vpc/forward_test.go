package vpc

import (
	"encoding/binary"
	"slices"
	"strings"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip/header"
)

func TestARPIsAnsweredForOwnersAndGatewayOnly(t *testing.T) {
	imds := ip4{169, 254, 169, 254}
	for _, tc := range []struct {
		name   string
		target ip4
		answer mac
		ok     bool
	}{
		{"gateway", gateway1, router1, true},
		{"service", imds, router1, true},
		{"peer of the subnet", dbIP, dbMAC, true},
		{"branch of the subnet", branchIP, branchMAC, true},
		{"nobody", ip4{192, 168, 0, 200}, mac{}, false},
		{"ENI of another subnet", farIP, mac{}, false},
		{"gateway of another subnet", gateway2, mac{}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := newBed(testTopology())
			v := b.send(nodeENI, frame(broadcastMAC, nodeMAC, 0, etherARP, arpMessage(arpRequest, nodeMAC, nodeIP, tc.target)))
			if !tc.ok {
				wantDrop(t, v, nodeENI, Egress, ARPNoOwner)
				return
			}
			wantDelivery(t, v, nodeENI)
			e, _ := parseEthernet(v.frame)
			a, ok := parseARP(v.frame[e.payload:])
			if !ok || e.dst != nodeMAC || e.src != tc.answer || a.op != arpReply || a.senderMAC != tc.answer || a.senderIP != tc.target || a.targetIP != nodeIP {
				t.Fatalf("answer %+v in %+v, want %v at %x", a, e, tc.target, tc.answer)
			}
		})
	}
}

func TestARPProbeForOwnAddressFindsNoDuplicate(t *testing.T) {
	b := newBed(testTopology())
	if v := b.send(nodeENI, frame(broadcastMAC, nodeMAC, 0, etherARP, arpMessage(arpRequest, nodeMAC, ip4Any, nodeIP))); v.action != ignore {
		t.Fatalf("got %s", describeVerdict(v))
	}
}

func TestARPFromABranchIsAnsweredInItsVLANWhateverSenderAddressLinuxChose(t *testing.T) {
	b := newBed(testTopology())
	v := b.send(nodeENI, frame(broadcastMAC, branchMAC, 7, etherARP, arpMessage(arpRequest, branchMAC, nodeIP, gateway1)))
	wantDelivery(t, v, nodeENI)
	e, _ := parseEthernet(v.frame)
	if !e.tagged || e.vlan != 7 || e.dst != branchMAC || e.proto != etherARP {
		t.Fatalf("answer in %+v", e)
	}
}

func TestFramesThatTheENIDoesNotOwnAreDropped(t *testing.T) {
	syn := tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN)
	nodeSYN := tcpPacket(nodeIP, 4000, dbIP, 5432, tcpSYN)
	for _, tc := range []struct {
		name  string
		frame []byte
		at    string
		dir   Direction
		want  Reason
	}{
		{"VLAN without association", frame(router1, branchMAC, 9, etherIPv4, syn), nodeENI, Egress, UnknownVLAN},
		{"another branch's MAC", frame(router1, otherMAC, 7, etherIPv4, syn), branchENI, Egress, SourceMAC},
		{"trunk's MAC in a VLAN", frame(router1, nodeMAC, 7, etherIPv4, syn), branchENI, Egress, SourceMAC},
		{"branch's MAC untagged", frame(router1, branchMAC, 0, etherIPv4, syn), nodeENI, Egress, SourceMAC},
		{"branch's address untagged", frame(router1, nodeMAC, 0, etherIPv4, syn), nodeENI, Egress, SourceDestCheck},
		{"node's address in a VLAN", frame(router1, branchMAC, 7, etherIPv4, nodeSYN), branchENI, Egress, SourceDestCheck},
		{"ARP in another's name", frame(broadcastMAC, nodeMAC, 0, etherARP, arpMessage(arpRequest, dbMAC, nodeIP, gateway1)), nodeENI, Egress, SourceMAC},
		{"to another's MAC", frame(branchMAC, nodeMAC, 0, etherIPv4, nodeSYN), branchENI, Ingress, SourceDestCheck},
		{"to a MAC of another subnet", frame(farMAC, nodeMAC, 0, etherIPv4, nodeSYN), nodeENI, Egress, UnknownMAC},
		{"to nobody's MAC", frame(mac{2, 9}, nodeMAC, 0, etherIPv4, nodeSYN), nodeENI, Egress, UnknownMAC},
		{"IPv4 broadcast", frame(broadcastMAC, nodeMAC, 0, etherIPv4, nodeSYN), nodeENI, Egress, GroupAddress},
		{"neither IPv4 nor IPv6", frame(mac{0x01, 0x80, 0xc2, 0, 0, 0x0e}, nodeMAC, 0, 0x88cc, nil), nodeENI, Egress, NotIP},
		{"IP too short", frame(router1, nodeMAC, 0, etherIPv4, nodeSYN[:15]), nodeENI, Egress, Malformed},
		{"no frame", []byte{1, 2, 3}, nodeENI, Egress, Malformed},
		{"address that nobody owns", frame(router1, nodeMAC, 0, etherIPv4, tcpPacket(nodeIP, 1, ip4{192, 168, 0, 77}, 80, tcpSYN)), nodeENI, Egress, NoRoute},
		{"off the VPC", frame(router1, nodeMAC, 0, etherIPv4, tcpPacket(nodeIP, 1, ip4{1, 1, 1, 1}, 80, tcpSYN)), nodeENI, Egress, NoRoute},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wantDrop(t, newBed(testTopology()).send(nodeENI, tc.frame), tc.at, tc.dir, tc.want)
		})
	}
}

func TestSourceDestCheckOffLetsAnENIForward(t *testing.T) {
	top := testTopology()
	for i := range top.ENIs {
		if top.ENIs[i].ID == nodeENI || top.ENIs[i].ID == dbENI {
			top.ENIs[i].SourceDestCheck = false
		}
	}
	top.Groups[3].Ingress = []Rule{{ID: "sgr-all", Protocol: -1, FromPort: -1, ToPort: -1, CIDR: everyone}}
	b := newBed(top)
	pkt := udpPacket(ip4{10, 0, 0, 1}, 1, ip4{10, 0, 0, 2}, 2, nil)
	wantDelivery(t, b.send(nodeENI, frame(dbMAC, nodeMAC, 0, etherIPv4, pkt)), dbENI)
}

func TestABranchReachesItsPeerTaggedAndRouted(t *testing.T) {
	b := newBed(testTopology())
	// Out of the trunk's port with the tag, into the database's without.
	v := b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN)))
	wantDelivery(t, v, dbENI)
	e, _ := parseEthernet(v.frame)
	if e.tagged || e.dst != dbMAC || e.src != router1 {
		t.Fatalf("delivered as %+v", e)
	}
	ip := header.IPv4(v.frame[e.payload:])
	if ip.TTL() != 63 || !ip.IsChecksumValid() {
		t.Fatalf("TTL %d, checksum valid %v", ip.TTL(), ip.IsChecksumValid())
	}
	// And the answer, by the ENI's own MAC as ARP gave it: not routed.
	v = b.send(dbENI, frame(branchMAC, dbMAC, 0, etherIPv4, tcpPacket(dbIP, 5432, branchIP, 4000, tcpSYN|tcpACK)))
	wantDelivery(t, v, nodeENI)
	e, _ = parseEthernet(v.frame)
	if !e.tagged || e.vlan != 7 || e.dst != branchMAC || e.src != dbMAC {
		t.Fatalf("delivered as %+v", e)
	}
	if ip := header.IPv4(v.frame[e.payload:]); ip.TTL() != 64 || !ip.IsChecksumValid() {
		t.Fatalf("TTL %d", ip.TTL())
	}
}

func TestTwoBranchesOfOneTrunkMeetOnlyThroughTheirGroups(t *testing.T) {
	b := newBed(testTopology())
	ping := frame(router1, branchMAC, 7, etherIPv4, echoPacket(branchIP, otherIP, icmpEchoRequest, 1))
	wantDrop(t, b.send(nodeENI, ping), otherENI, Ingress, NoRule)
	top := testTopology()
	groupOf(top, "sg-other").Ingress = []Rule{{ID: "sgr-x", Protocol: protoICMP, FromPort: -1, ToPort: -1, Group: "sg-pod"}}
	b.apply(top)
	v := b.send(nodeENI, ping)
	wantDelivery(t, v, nodeENI)
	if e, _ := parseEthernet(v.frame); e.vlan != 8 || e.dst != otherMAC {
		t.Fatalf("delivered as %+v", e)
	}
}

func TestNoRuleNamesWhatWasLookedUpAtTheReceiver(t *testing.T) {
	b := newBed(testTopology())
	v := b.send(nodeENI, frame(router1, otherMAC, 8, etherIPv4, tcpPacket(otherIP, 4000, dbIP, 5432, tcpSYN)))
	wantDrop(t, v, dbENI, Ingress, NoRule)
	want := []string{
		"sg-db sgr-pods tcp/5432 sg-pod: 192.168.0.18 (eni-branch8) is not in sg-pod",
		"sg-db sgr-admin tcp/5432 192.168.0.99/32: 192.168.0.18 (eni-branch8) is not 192.168.0.99/32",
	}
	if !slices.Equal(v.rules, want) {
		t.Fatalf("looked up %q, want %q", v.rules, want)
	}
	d := v.describe(b.now)
	if d.TCPFlags != "SYN" || d.Src.String() != "192.168.0.18:4000" || d.Dst.String() != "192.168.0.20:5432" {
		t.Fatalf("drop %+v", d)
	}
	if s := d.String(); !strings.Contains(s, "eni-db ingress dropped: no-rule vlan 8 tcp 192.168.0.18:4000 > 192.168.0.20:5432 [SYN]; looked up: sg-db sgr-pods") {
		t.Fatalf("as text: %s", s)
	}
	if v.seen != [2]observation{{otherENI, true}, {dbENI, false}} {
		t.Fatalf("flow log sees %+v", v.seen)
	}
}

func TestEgressRulesHoldTheSender(t *testing.T) {
	top := testTopology()
	groupOf(top, "sg-pod").Egress = []Rule{{ID: "sgr-e", Protocol: protoTCP, FromPort: 5432, ToPort: 5432, Group: "sg-db"}}
	b := newBed(top)
	to := func(dst ip4, port uint16) verdict {
		return b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 4000+port, dst, port, tcpSYN)))
	}
	wantDelivery(t, to(dbIP, 5432), dbENI)
	wantDelivery(t, to(farIP, 5432), farENI)
	wantDrop(t, to(dbIP, 5433), branchENI, Egress, NoRule)
	wantDrop(t, to(nodeIP, 5432), branchENI, Egress, NoRule)
}

func TestTTLEndsAtTheGateway(t *testing.T) {
	b := newBed(testTopology())
	ip := tcpPacket(branchIP, 4000, farIP, 5432, tcpSYN)
	setTTL(ip, 1)
	wantDrop(t, b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, ip)), branchENI, Egress, TTLExpired)
}

func TestTTLOfOneCrossesTheSubnetWithoutTheGateway(t *testing.T) {
	b := newBed(testTopology())
	ip := tcpPacket(branchIP, 4000, dbIP, 5432, tcpSYN)
	setTTL(ip, 1)
	wantDelivery(t, b.send(nodeENI, frame(dbMAC, branchMAC, 7, etherIPv4, ip)), dbENI)
}

func TestJumboPacketsPassAndLargerOnesDoNot(t *testing.T) {
	b := newBed(testTopology())
	for _, tc := range []struct {
		size int
		ok   bool
	}{{MTU, true}, {MTU + 1, false}} {
		ip := udpPacket(branchIP, 1, nodeIP, 53, make([]byte, tc.size-28))
		v := b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, ip))
		if tc.ok {
			wantDelivery(t, v, nodeENI)
			continue
		}
		wantDrop(t, v, branchENI, Egress, TooBig)
	}
}

func TestEthernetPaddingIsNotPassedOn(t *testing.T) {
	b := newBed(testTopology())
	f := frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 1, dbIP, 5432, tcpSYN))
	v := b.send(nodeENI, append(f, make([]byte, 20)...))
	wantDelivery(t, v, dbENI)
	if len(v.frame) != ethHeaderLen+40 {
		t.Fatalf("%d bytes", len(v.frame))
	}
}

func TestFragmentsFollowTheirFirst(t *testing.T) {
	b := newBed(testTopology())
	first := udpPacket(branchIP, 1, nodeIP, 53, make([]byte, 1000))
	later := ipPacket(branchIP, nodeIP, protoUDP, make([]byte, 500))
	setFragment := func(ip []byte, id, word uint16) []byte {
		binary.BigEndian.PutUint16(ip[4:], id)
		binary.BigEndian.PutUint16(ip[6:], word)
		ip[10], ip[11] = 0, 0
		binary.BigEndian.PutUint16(ip[10:], checksum(ip[:ipv4MinLen], 0))
		return ip
	}
	send := func(ip []byte) verdict { return b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, ip)) }
	wantDrop(t, send(setFragment(later, 5, 126)), branchENI, Egress, NoFirstFragment)
	wantDelivery(t, send(setFragment(first, 5, 0x2000)), nodeENI)
	v := send(setFragment(later, 5, 126))
	wantDelivery(t, v, nodeENI)
	if v.pkt.dstPort != 53 {
		t.Fatalf("the later fragment counts for port %d", v.pkt.dstPort)
	}
	wantDrop(t, send(setFragment(later, 6, 126)), branchENI, Egress, NoFirstFragment)
	b.now = b.now.Add(31 * time.Second)
	wantDrop(t, send(setFragment(later, 5, 126)), branchENI, Egress, NoFirstFragment)
	// Of a refused packet all fragments are.
	wantDrop(t, send(setFragment(udpPacket(branchIP, 1, nodeIP, 54, make([]byte, 1000)), 9, 0x2000)), nodeENI, Ingress, NoRule)
	wantDrop(t, send(setFragment(later, 9, 126)), nodeENI, Ingress, NoRule)
}

func TestServicePacketsAreForTheENIThatAsks(t *testing.T) {
	b := newBed(testTopology())
	imds := ip4{169, 254, 169, 254}
	top := testTopology()
	groupOf(top, "sg-pod").Egress = nil // groups don't apply
	b.apply(top)
	v := b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 1, imds, 80, tcpSYN)))
	if v.action != serve || v.at.id != branchENI {
		t.Fatalf("got %s", describeVerdict(v))
	}
	wantDrop(t, b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(nodeIP, 1, imds, 80, tcpSYN))), branchENI, Egress, SourceDestCheck)
}

func TestADetachedENINeitherSendsNorReceives(t *testing.T) {
	top := testTopology()
	top.ENIs[0].InstanceID = "" // the trunk
	b := newBed(top)
	wantDrop(t, b.send(nodeENI, frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 1, dbIP, 5432, tcpSYN))), branchENI, Egress, NotAttached)
	groupOf(top, "sg-pod").Ingress = []Rule{{Protocol: -1, CIDR: everyone}}
	b.apply(top)
	wantDrop(t, b.send(dbENI, frame(router1, dbMAC, 0, etherIPv4, tcpPacket(dbIP, 1, branchIP, 80, tcpSYN))), branchENI, Ingress, NotAttached)
}
