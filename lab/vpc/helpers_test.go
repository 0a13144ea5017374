package vpc

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"
)

// The VPC of the tests: two subnets; a node with a trunk and two branches on it, a database, and one more in the
// other subnet.
const (
	nodeENI   = "eni-node"
	branchENI = "eni-branch7"
	otherENI  = "eni-branch8"
	dbENI     = "eni-db"
	farENI    = "eni-far"
)

var (
	gateway1 = ip4{192, 168, 0, 1}
	gateway2 = ip4{192, 168, 32, 1}
	nodeIP   = ip4{192, 168, 0, 10}
	branchIP = ip4{192, 168, 0, 17}
	otherIP  = ip4{192, 168, 0, 18}
	dbIP     = ip4{192, 168, 0, 20}
	farIP    = ip4{192, 168, 32, 30}

	nodeMAC   = mac{2, 0, 0, 0, 0, 10}
	branchMAC = mac{2, 0, 0, 0, 0, 17}
	otherMAC  = mac{2, 0, 0, 0, 0, 18}
	dbMAC     = mac{2, 0, 0, 0, 0, 20}
	farMAC    = mac{2, 0, 0, 0, 0, 30}
	router1   = routerMAC("subnet-1")

	everyone = netip.MustParsePrefix("0.0.0.0/0")
)

func allOut() []Rule {
	return []Rule{{ID: "sgr-out", Protocol: -1, FromPort: -1, ToPort: -1, CIDR: everyone}}
}

func testTopology() *Topology {
	eni := func(id, subnet string, m mac, ip ip4, groups ...string) ENI {
		return ENI{ID: id, SubnetID: subnet, MAC: net.HardwareAddr(m[:]), Addresses: []netip.Addr{ip.addr()}, Groups: groups,
			SourceDestCheck: true, InstanceID: "i-" + id}
	}
	branch := func(e ENI, vlan uint16) ENI {
		e.InstanceID, e.TrunkID, e.VLAN = "", nodeENI, vlan
		return e
	}
	return &Topology{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		Subnets: []Subnet{
			{ID: "subnet-1", CIDR: netip.MustParsePrefix("192.168.0.0/19")},
			{ID: "subnet-2", CIDR: netip.MustParsePrefix("192.168.32.0/19")},
		},
		ENIs: []ENI{
			eni(nodeENI, "subnet-1", nodeMAC, nodeIP, "sg-node"),
			branch(eni(branchENI, "subnet-1", branchMAC, branchIP, "sg-pod"), 7),
			branch(eni(otherENI, "subnet-1", otherMAC, otherIP, "sg-other"), 8),
			eni(dbENI, "subnet-1", dbMAC, dbIP, "sg-db"),
			eni(farENI, "subnet-2", farMAC, farIP, "sg-db"),
		},
		Groups: []SecurityGroup{
			{ID: "sg-node", Egress: allOut(), Ingress: []Rule{
				{ID: "sgr-dns", Protocol: protoUDP, FromPort: 53, ToPort: 53, Group: "sg-pod"},
				{ID: "sgr-ping", Protocol: protoICMP, FromPort: icmpEchoRequest, ToPort: -1, CIDR: everyone},
			}},
			{ID: "sg-pod", Egress: allOut(), Ingress: []Rule{
				{ID: "sgr-probe", Protocol: protoTCP, FromPort: 8080, ToPort: 8090, Group: "sg-node"},
			}},
			{ID: "sg-other", Egress: allOut()},
			{ID: "sg-db", Egress: allOut(), Ingress: []Rule{
				{ID: "sgr-pods", Protocol: protoTCP, FromPort: 5432, ToPort: 5432, Group: "sg-pod"},
				{ID: "sgr-admin", Protocol: protoTCP, FromPort: 5432, ToPort: 5432, CIDR: netip.MustParsePrefix("192.168.0.99/32")},
			}},
		},
	}
}

func groupOf(t *Topology, id string) *SecurityGroup {
	for i := range t.Groups {
		if t.Groups[i].ID == id {
			return &t.Groups[i]
		}
	}
	panic("no group " + id)
}

// bed is a fabricState for tests of forward, with a clock.
type bed struct {
	*fabricState
	states map[string]*eniState
	now    time.Time
}

func newBed(t *Topology) *bed {
	b := &bed{states: map[string]*eniState{}, now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	b.fabricState = &fabricState{
		services: map[netip.Addr]bool{netip.MustParseAddr("169.254.169.254"): true},
		idle:     IdleTimeouts{}.withDefaults(),
		frags:    fragments{m: map[fragKey]fragment{}},
	}
	b.apply(t)
	return b
}

func (b *bed) apply(t *Topology) { b.idx = compile(t, b.states) }

func (b *bed) send(in string, frame []byte) verdict {
	buf := append(make([]byte, headroom), frame...)
	return b.forward(b.now, b.idx.enis[in], buf)
}

// frame builds an Ethernet frame; vlan 0: untagged.
func frame(dst, src mac, vlan uint16, proto uint16, payload []byte) []byte {
	f := append(append([]byte{}, dst[:]...), src[:]...)
	if vlan != 0 {
		f = binary.BigEndian.AppendUint16(f, etherVLAN)
		f = binary.BigEndian.AppendUint16(f, vlan)
	}
	f = binary.BigEndian.AppendUint16(f, proto)
	return append(f, payload...)
}

func ipPacket(src, dst ip4, proto uint8, transport []byte) []byte {
	ip := append(make([]byte, ipv4MinLen), transport...)
	putIPv4Header(ip, src, dst, proto)
	return ip
}

func tcpPacket(src ip4, sport uint16, dst ip4, dport uint16, flags uint8) []byte {
	t := make([]byte, 20)
	binary.BigEndian.PutUint16(t, sport)
	binary.BigEndian.PutUint16(t[2:], dport)
	t[12], t[13] = 5<<4, flags
	ip := ipPacket(src, dst, protoTCP, t)
	putTransportChecksum(ip, 16)
	return ip
}

func udpPacket(src ip4, sport uint16, dst ip4, dport uint16, data []byte) []byte {
	t := make([]byte, 8, 8+len(data))
	binary.BigEndian.PutUint16(t, sport)
	binary.BigEndian.PutUint16(t[2:], dport)
	binary.BigEndian.PutUint16(t[4:], uint16(8+len(data)))
	ip := ipPacket(src, dst, protoUDP, append(t, data...))
	putTransportChecksum(ip, 6)
	return ip
}

func echoPacket(src, dst ip4, kind uint8, id uint16) []byte {
	t := make([]byte, 16)
	t[0] = kind
	binary.BigEndian.PutUint16(t[4:], id)
	binary.BigEndian.PutUint16(t[2:], checksum(t, 0))
	return ipPacket(src, dst, protoICMP, t)
}

// icmpError reports on the packet quoted, from src to who sent it.
func icmpError(src ip4, kind uint8, quoted []byte) []byte {
	t := append(make([]byte, 8), quoted[:ipv4MinLen+8]...)
	t[0] = kind
	binary.BigEndian.PutUint16(t[2:], checksum(t, 0))
	return ipPacket(src, ip4(quoted[12:16]), protoICMP, t)
}

func arpMessage(op uint16, senderMAC mac, senderIP, targetIP ip4) []byte {
	b := make([]byte, arpLen)
	binary.BigEndian.PutUint16(b, 1)
	binary.BigEndian.PutUint16(b[2:], etherIPv4)
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], op)
	copy(b[8:], senderMAC[:])
	copy(b[14:], senderIP[:])
	copy(b[24:], targetIP[:])
	return b
}

func wantDrop(t *testing.T, v verdict, at string, d Direction, r Reason) {
	t.Helper()
	if v.action != drop || v.at.id != at || v.dir != d || v.reason != r {
		t.Fatalf("got %s, want a drop at %s %s: %s", describeVerdict(v), at, d, r)
	}
}

func wantDelivery(t *testing.T, v verdict, out string) {
	t.Helper()
	if v.action != deliver || v.out.id != out {
		t.Fatalf("got %s, want delivery at the port of %s", describeVerdict(v), out)
	}
}

func describeVerdict(v verdict) string {
	switch v.action {
	case drop:
		return v.describe(time.Time{}).String()
	case deliver:
		return "delivery at the port of " + v.out.id
	case serve:
		return "a service packet of " + v.at.id
	}
	return "nothing"
}
