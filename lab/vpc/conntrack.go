package vpc

import (
	"net/netip"
	"time"
)

// maxFlows bounds what one ENI may track (EC2's allowance depends on the instance's type; this one is for our memory).
const maxFlows = 1 << 16

// flowKey is a flow as seen from one ENI, so that both directions have the same key.
type flowKey struct {
	local, remote         netip.Addr
	proto                 uint8
	localPort, remotePort uint16 // ICMP echo: the id, and who asked
}

const (
	echoAskedLocal  = 1
	echoAskedRemote = 2
)

// keyOf returns the key of the flow that the packet belongs to. ICMP other than echo has none: it is not tracked.
func keyOf(d Direction, p *packet) (flowKey, bool) {
	k := flowKey{local: p.src, remote: p.dst, proto: p.proto, localPort: p.srcPort, remotePort: p.dstPort}
	if d == Ingress {
		k = flowKey{local: p.dst, remote: p.src, proto: p.proto, localPort: p.dstPort, remotePort: p.srcPort}
	}
	if p.isICMP() {
		if !p.isEcho() {
			return flowKey{}, false
		}
		k.localPort, k.remotePort = p.icmpID, echoAskedRemote
		if (d == Egress) == p.asks() {
			k.remotePort = echoAskedLocal
		}
	}
	return k, true
}

type flowPhase uint8

const (
	flowOpening flowPhase = iota // TCP: no handshake yet; others: no answer yet
	flowOpen
	flowClosing // TCP: both sides sent FIN, or one RST
)

// flow is tracked from its first allowed packet on.
type flow struct {
	phase     flowPhase
	initiator Direction // of the first packet
	answered  bool
	fin       [2]bool // by the initiator, by the answering side
	packets   uint32
	expires   time.Time
}

type flowTable map[flowKey]*flow

// live returns the flow if it has not idled out.
func (t flowTable) live(now time.Time, k flowKey) *flow {
	f := t[k]
	if f != nil && now.After(f.expires) {
		delete(t, k)
		return nil
	}
	return f
}

// add starts a flow with the packet p; false when the table is full.
func (t flowTable) add(now time.Time, k flowKey, d Direction, p *packet, idle *IdleTimeouts) bool {
	if len(t) >= maxFlows {
		t.sweep(now)
		if len(t) >= maxFlows {
			return false
		}
	}
	f := &flow{initiator: d}
	t[k] = f
	f.update(now, d, p, idle)
	return true
}

func (t flowTable) sweep(now time.Time) {
	for k, f := range t {
		if now.After(f.expires) {
			delete(t, k)
		}
	}
}

// update follows the flow by one packet and moves its expiry.
func (f *flow) update(now time.Time, d Direction, p *packet, idle *IdleTimeouts) {
	if f.packets < 1<<31 {
		f.packets++
	}
	side := 0
	if d != f.initiator {
		side = 1
		f.answered = true
	}
	switch p.proto {
	case protoTCP:
		f.updateTCP(now, side, p, idle)
	case protoICMP, protoICMPv6:
		f.expires = now.Add(idle.ICMP)
	default:
		// As Linux and EC2 do: a query and its answer are short-lived, what goes on is a stream.
		f.expires = now.Add(idle.UDP)
		if f.answered && f.packets > 2 {
			f.expires = now.Add(idle.UDPStream)
		}
	}
}

func (f *flow) updateTCP(now time.Time, side int, p *packet, idle *IdleTimeouts) {
	if f.phase == flowClosing {
		return // late packets don't keep it alive
	}
	if p.tcpFlags&tcpFIN != 0 {
		f.fin[side] = true
	}
	switch {
	case p.tcpFlags&tcpRST != 0, f.fin[0] && f.fin[1]:
		f.phase = flowClosing
	case f.phase == flowOpening && f.answered && side == 0 && p.tcpFlags&tcpACK != 0:
		f.phase = flowOpen
	}
	switch f.phase {
	case flowOpening:
		f.expires = now.Add(idle.TCPOpening)
	case flowOpen:
		f.expires = now.Add(idle.TCPEstablished)
	case flowClosing:
		f.expires = now.Add(idle.TCPClosing)
	}
}

// admit decides whether the ENI's security groups let the packet through in this direction, and tracks its flow.
// quoted is what an ICMP error quotes, else nil. The reason is empty when the packet may pass.
func (s *fabricState) admit(now time.Time, e *eni, d Direction, p, quoted *packet) Reason {
	if quoted != nil {
		// An error goes the other way than the packet that it quotes.
		if k, ok := keyOf(opposite(d), quoted); ok && e.st.flows.live(now, k) != nil {
			return ""
		}
	}
	k, tracked := keyOf(d, p)
	if !tracked {
		if s.idx.allowed(e, d, p) {
			return ""
		}
		return NoRule
	}
	f := e.st.flows.live(now, k)
	opens := p.proto == protoTCP && p.tcpFlags&(tcpSYN|tcpACK|tcpRST|tcpFIN) == tcpSYN
	// A SYN on a flow that was open is a new connection that happens to have the same ports: rules decide.
	if f != nil && !(opens && f.phase != flowOpening) {
		f.update(now, d, p, &s.idle)
		return ""
	}
	if !s.idx.allowed(e, d, p) {
		return NoRule
	}
	if !e.st.flows.add(now, k, d, p, &s.idle) {
		return FlowTableFull
	}
	return ""
}

func opposite(d Direction) Direction {
	if d == Ingress {
		return Egress
	}
	return Ingress
}

// fragments remembers the ports of fragmented packets, from the first fragment for the later ones, which have none.
type fragments struct {
	m map[fragKey]fragment
}

type fragKey struct {
	src, dst netip.Addr
	proto    uint8
	id       uint32
}

type fragment struct {
	head    packet
	expires time.Time
}

const (
	maxFragments    = 4096
	fragmentTimeout = 30 * time.Second // as Linux's
)

// complete fills the transport fields of a later fragment in from the first; false when that was not seen.
func (t *fragments) complete(now time.Time, p *packet) bool {
	k := fragKey{p.src, p.dst, p.proto, p.id}
	switch {
	case p.fragFirst && p.transportOK:
		if len(t.m) >= maxFragments {
			for k, f := range t.m {
				if now.After(f.expires) {
					delete(t.m, k)
				}
			}
		}
		if len(t.m) < maxFragments {
			t.m[k] = fragment{head: *p, expires: now.Add(fragmentTimeout)}
		}
		return true
	case p.fragLater:
		f, ok := t.m[k]
		if !ok || now.After(f.expires) {
			return false
		}
		p.srcPort, p.dstPort = f.head.srcPort, f.head.dstPort
		p.icmpType, p.icmpCode, p.icmpID = f.head.icmpType, f.head.icmpCode, f.head.icmpID
		p.transportOK = true
		return true
	}
	return true
}
