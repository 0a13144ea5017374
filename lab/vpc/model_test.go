package vpc

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// model is the plainest evaluation of a VPC's groups: maps of strings, no index, and it remembers per ENI which exchanges
// its groups once let start.
type model struct {
	top     *Topology
	tracked map[string]bool
}

type exchange struct {
	from, to     int // ENIs
	sport, dport uint16
}

func (m *model) has(eni int, group string) bool {
	for _, g := range m.top.ENIs[eni].Groups {
		if g == group {
			return true
		}
	}
	return false
}

func (m *model) rulesAllow(self, other int, ingress bool, dport uint16) bool {
	for _, g := range m.top.Groups {
		if !m.has(self, g.ID) {
			continue
		}
		rules := g.Egress
		if ingress {
			rules = g.Ingress
		}
		for _, r := range rules {
			peerOK := r.Group != "" && m.has(other, r.Group) || r.Group == "" && r.CIDR.Contains(m.top.ENIs[other].Addresses[0])
			portOK := r.Protocol == -1 || r.Protocol == protoUDP && r.FromPort <= int(dport) && int(dport) <= r.ToPort
			if peerOK && portOK {
				return true
			}
		}
	}
	return false
}

// send says at which ENI the packet is dropped (-1: it is delivered).
func (m *model) send(x exchange) int {
	for _, side := range []struct {
		self, other         int
		selfPort, otherPort uint16
		ingress             bool
	}{{x.from, x.to, x.sport, x.dport, false}, {x.to, x.from, x.dport, x.sport, true}} {
		key := fmt.Sprint(side.self, side.other, side.selfPort, side.otherPort)
		if m.tracked[key] {
			continue
		}
		if !m.rulesAllow(side.self, side.other, side.ingress, x.dport) {
			return side.self
		}
		m.tracked[key] = true
	}
	return -1
}

func drawGroups(t *rapid.T) []SecurityGroup {
	rule := rapid.Custom(func(t *rapid.T) Rule {
		r := Rule{ID: "sgr", Protocol: rapid.SampledFrom([]int{-1, protoUDP, protoUDP, protoTCP}).Draw(t, "proto")}
		r.FromPort = rapid.IntRange(1, 4).Draw(t, "from")
		r.ToPort = rapid.IntRange(r.FromPort, 4).Draw(t, "to")
		if rapid.Bool().Draw(t, "byGroup") {
			r.Group = fmt.Sprint("sg-", rapid.IntRange(0, 3).Draw(t, "peer"))
		} else {
			r.CIDR = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(rapid.IntRange(8, 16).Draw(t, "addr"))}), rapid.SampledFrom([]int{0, 29, 30, 31, 32}).Draw(t, "bits"))
		}
		return r
	})
	var out []SecurityGroup
	for i := range 4 {
		out = append(out, SecurityGroup{ID: fmt.Sprint("sg-", i), Ingress: rapid.SliceOfN(rule, 0, 3).Draw(t, "in"), Egress: rapid.SliceOfN(rule, 0, 3).Draw(t, "out")})
	}
	return out
}

func drawTopology(t *rapid.T) *Topology {
	top := &Topology{
		CIDRs:   []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")},
		Subnets: []Subnet{{ID: "subnet-1", CIDR: netip.MustParsePrefix("10.0.0.0/24")}},
		Groups:  drawGroups(t),
	}
	for i := range 5 {
		e := ENI{
			ID: fmt.Sprint("eni-", i), SubnetID: "subnet-1", MAC: net.HardwareAddr{2, 0, 0, 0, 0, byte(i)},
			Addresses: []netip.Addr{netip.AddrFrom4([4]byte{10, 0, 0, byte(10 + i)})}, SourceDestCheck: true,
		}
		for g := range 4 {
			if rapid.IntRange(0, 2).Draw(t, "member") == 0 {
				e.Groups = append(e.Groups, fmt.Sprint("sg-", g))
			}
		}
		if i >= 2 { // three branches on ENI 0's trunk
			e.TrunkID, e.VLAN = "eni-0", uint16(i)
		} else {
			e.InstanceID = "i-" + e.ID
		}
		top.ENIs = append(top.ENIs, e)
	}
	return top
}

// TestTheFabricAgreesWithAPlainEvaluationOfTheRules sends UDP packets between all kinds of ENIs while groups, rules and
// memberships change. The clock stands still, so nothing idles out.
func TestTheFabricAgreesWithAPlainEvaluationOfTheRules(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		m := &model{top: drawTopology(t), tracked: map[string]bool{}}
		b := newBed(m.top)
		t.Repeat(map[string]func(*rapid.T){
			"change": func(t *rapid.T) {
				m.top = drawTopology(t)
				b.apply(m.top)
			},
			"send": func(t *rapid.T) {
				x := exchange{from: rapid.IntRange(0, 4).Draw(t, "from"), sport: uint16(rapid.IntRange(1, 4).Draw(t, "sport")), dport: uint16(rapid.IntRange(1, 4).Draw(t, "dport"))}
				x.to = (x.from + rapid.IntRange(1, 4).Draw(t, "hop")) % 5
				from, to := b.idx.enis[fmt.Sprint("eni-", x.from)], b.idx.enis[fmt.Sprint("eni-", x.to)]
				want := m.send(x)
				v := b.send(from.port().id, frame(from.subnet.routerMAC, from.mac, vlanOf(from), etherIPv4, udpPacket(from.ips[0], x.sport, to.ips[0], x.dport, nil)))
				switch {
				case want == -1:
					if v.action != deliver || v.out != to.port() {
						t.Fatalf("%+v: %s, want delivery at %s", x, describeVerdict(v), to.id)
					}
					e, _ := parseEthernet(v.frame)
					if e.dst != to.mac || e.vlan != vlanOf(to) {
						t.Fatalf("%+v: delivered to %x in VLAN %d", x, e.dst, e.vlan)
					}
				case v.action != drop || v.reason != NoRule || v.at.id != fmt.Sprint("eni-", want):
					t.Fatalf("%+v: %s, want it refused at eni-%d", x, describeVerdict(v), want)
				}
			},
		})
	})
}

func vlanOf(e *eni) uint16 {
	if e.isBranch() {
		return e.vlan
	}
	return 0
}

func BenchmarkForwardTrackedFlow(b *testing.B) {
	bed := newBed(testTopology())
	f := frame(router1, branchMAC, 7, etherIPv4, tcpPacket(branchIP, 4000, dbIP, 5432, tcpACK))
	buf := make([]byte, headroom+len(f))
	in := bed.idx.enis[nodeENI]
	now := time.Unix(1, 0)
	b.ReportAllocs()
	for b.Loop() {
		copy(buf[headroom:], f)
		if v := bed.forward(now, in, buf); v.action != deliver {
			b.Fatal(describeVerdict(v))
		}
	}
}
