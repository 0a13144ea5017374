package vpc

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

// Reason says why the fabric dropped a frame.
type Reason string

const (
	NoRule          Reason = "no-rule"           // no rule of the ENI's security groups lets it through
	SourceDestCheck Reason = "source-dest-check" // source or destination is no address of the ENI
	SourceMAC       Reason = "source-mac"        // the frame's (or an ARP's) source MAC is not the ENI's
	UnknownVLAN     Reason = "unknown-vlan"      // no branch ENI is associated with the trunk under this VLAN id
	UnknownENI      Reason = "unknown-eni"       // the topology has no such ENI (yet)
	UnknownMAC      Reason = "unknown-mac"       // to a MAC that is neither the router's nor an ENI's of the subnet
	NotAttached     Reason = "not-attached"      // the ENI is attached to no instance, or its link is not plugged in
	NoRoute         Reason = "no-route"          // to an address that no ENI owns, off the VPC included
	TTLExpired      Reason = "ttl-expired"
	TooBig          Reason = "mtu"
	Malformed       Reason = "malformed"
	NoFirstFragment Reason = "no-first-fragment"
	FlowTableFull   Reason = "flow-table-full"
	QueueFull       Reason = "queue-full" // the instance does not take its frames fast enough
	LinkDown        Reason = "link-down"  // the instance does not take its frames at all

	// What every network has and nobody looks for. These are counted but not in the log.
	GroupAddress Reason = "broadcast-or-multicast"
	NotIP        Reason = "not-ip"
	ARPNoOwner   Reason = "arp-no-owner"
)

func (r Reason) noise() bool {
	return r == GroupAddress || r == NotIP || r == ARPNoOwner || r == LinkDown
}

// Drop is one dropped frame.
type Drop struct {
	Time      time.Time      `json:"time"`
	ENI       string         `json:"eni"` // where it was dropped
	Direction Direction      `json:"direction"`
	Reason    Reason         `json:"reason"`
	VLAN      uint16         `json:"vlan,omitempty"` // of a tagged frame
	Protocol  string         `json:"protocol,omitempty"`
	Src       netip.AddrPort `json:"src,omitzero"` // without ports: port 0
	Dst       netip.AddrPort `json:"dst,omitzero"`
	TCPFlags  string         `json:"tcpFlags,omitempty"` // such as SYN or SYN,ACK
	// Rules holds for NoRule what was looked up and why it did not match.
	Rules []string `json:"rules,omitempty"`
}

// String is one line for people.
func (d Drop) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s %s dropped: %s", d.Time.UTC().Format(time.RFC3339Nano), d.ENI, d.Direction, d.Reason)
	if d.VLAN != 0 {
		fmt.Fprintf(&b, " vlan %d", d.VLAN)
	}
	if d.Protocol != "" {
		fmt.Fprintf(&b, " %s %s > %s", d.Protocol, d.Src, d.Dst)
	}
	if d.TCPFlags != "" {
		fmt.Fprintf(&b, " [%s]", d.TCPFlags)
	}
	if len(d.Rules) > 0 {
		fmt.Fprintf(&b, "; looked up: %s", strings.Join(d.Rules, "; "))
	}
	return b.String()
}

// DropKey names a drop counter.
type DropKey struct {
	ENI       string
	Direction Direction
	Reason    Reason
}

// recentDrops is how many drops are remembered one by one.
const recentDrops = 2048

type dropLog struct {
	counts map[DropKey]uint64
	ring   []Drop
	next   int
}

func (l *dropLog) add(d Drop) {
	l.counts[DropKey{d.ENI, d.Direction, d.Reason}]++
	if d.Reason.noise() {
		return
	}
	if len(l.ring) < recentDrops {
		l.ring = append(l.ring, d)
		return
	}
	l.ring[l.next] = d
	l.next = (l.next + 1) % recentDrops
}

func (l *dropLog) recent() []Drop {
	out := make([]Drop, 0, len(l.ring))
	out = append(out, l.ring[l.next:]...)
	return append(out, l.ring[:l.next]...)
}

// Drops returns the most recent drops (up to 2048), oldest first. Background noise (broadcasts, ARP and NDP for nobody,
// links that are down) is in DropCounts only.
func (f *Fabric) Drops() []Drop {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.drops.recent()
}

// DropCounts returns how many frames were dropped so far, per ENI, direction and reason.
func (f *Fabric) DropCounts() map[DropKey]uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make(map[DropKey]uint64, len(f.drops.counts))
	for k, n := range f.drops.counts {
		out[k] = n
	}
	return out
}

func tcpFlagNames(f uint8) string {
	var out []string
	for i, n := range []string{"FIN", "SYN", "RST", "PSH", "ACK"} {
		if f&(1<<i) != 0 {
			out = append(out, n)
		}
	}
	return strings.Join(out, ",")
}
