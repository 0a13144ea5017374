package sim

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/pool"
)

// What EC2 and its metadata service take, the same for both agents. The documentation of today's agent says that a new
// ENI takes up to 10 s.
const (
	describeTakes = 150 * time.Millisecond
	assignTakes   = 400 * time.Millisecond
	createTakes   = 800 * time.Millisecond
	attachTakes   = 1500 * time.Millisecond
	modifyTakes   = 300 * time.Millisecond
	detachTakes   = 500 * time.Millisecond
	deleteTakes   = 300 * time.Millisecond
	// ShownAfter is how long after its attachment the metadata service shows an ENI.
	ShownAfter = 2 * time.Second
	// goneAfter is how long after DetachNetworkInterface's answer an ENI is detached: until then it can't be deleted.
	goneAfter = 4 * time.Second
)

// The calls, by EC2's names.
const (
	describeENIs      = "DescribeNetworkInterfaces"
	describeInstances = "DescribeInstances"
	describeSubnets   = "DescribeSubnets"
	createENI         = "CreateNetworkInterface"
	attachENI         = "AttachNetworkInterface"
	modifyENI         = "ModifyNetworkInterfaceAttribute"
	detachENI         = "DetachNetworkInterface"
	deleteENI         = "DeleteNetworkInterface"
	assign            = "AssignPrivateIpAddresses"
	unassign          = "UnassignPrivateIpAddresses"
)

// Mutating says whether a call draws from EC2's smaller bucket of requests (50 at once, 5 a second).
func Mutating(call string) bool {
	return call != describeENIs && call != describeInstances && call != describeSubnets
}

// Takes is how long a call takes.
func Takes(call string) time.Duration {
	switch call {
	case assign, unassign:
		return assignTakes
	case createENI:
		return createTakes
	case attachENI:
		return attachTakes
	case modifyENI:
		return modifyTakes
	case detachENI:
		return detachTakes
	case deleteENI:
		return deleteTakes
	}
	return describeTakes
}

// Unit is an address or a prefix on an ENI.
type Unit struct {
	Prefix netip.Prefix
	InUse  int
	// Cooling are the times until which its freed addresses rest.
	Cooling []time.Duration
	since   time.Duration
}

func (u *Unit) size() int { return pool.Unit{Prefix: u.Prefix}.Size() }

func (u *Unit) cooling(now time.Duration) int {
	u.Cooling = slices.DeleteFunc(u.Cooling, func(until time.Duration) bool { return until <= now })
	return len(u.Cooling)
}

func (u *Unit) idle(now time.Duration) bool { return u.InUse == 0 && u.cooling(now) == 0 }

func (u *Unit) free(now time.Duration) int { return u.size() - u.InUse - u.cooling(now) }

// ENI is one of the node's.
type ENI struct {
	ID      string
	Device  int
	Units   []*Unit
	Since   time.Duration
	Usable  bool // the agent knows of it
	leaving bool
}

// Node is an instance with its ENIs, and the count of what was asked of EC2.
type Node struct {
	*Clock
	Setting
	ENIs  []*ENI
	Calls map[string]int
	made  int
	units int
}

// Setting is an instance type and what the environment says.
type Setting struct {
	Name     string       `json:"name"`
	Type     string       `json:"type"`
	Targets  pool.Targets `json:"-"`
	CoolDown time.Duration
}

func newNode(c *Clock, s Setting) *Node {
	return &Node{Clock: c, Setting: s, Calls: map[string]int{}, ENIs: []*ENI{{ID: "eni-0", Usable: true}}}
}

// call asks EC2, which takes its time.
func (n *Node) call(p *Process, name string) {
	n.Calls[name]++
	p.Sleep(Takes(name))
}

func (n *Node) newUnits(count int, prefixes bool) (out []*Unit) {
	for range count {
		n.units++
		at := netip.AddrFrom4([4]byte{10, byte(n.units >> 12), byte(n.units >> 4), byte(n.units << 4)})
		bits := 32
		if prefixes {
			bits = 28
		}
		out = append(out, &Unit{Prefix: netip.PrefixFrom(at, bits), since: n.now})
	}
	return out
}

func (n *Node) eni(id string) *ENI {
	i := slices.IndexFunc(n.ENIs, func(e *ENI) bool { return e.ID == id })
	if i < 0 {
		panic(fmt.Sprintf("there is no %s", id))
	}
	return n.ENIs[i]
}

// attach makes an ENI at the lowest free device, and says when it will be shown.
func (n *Node) attach(count int, prefixes bool) (e *ENI, shown time.Duration) {
	n.made++
	e = &ENI{ID: fmt.Sprintf("eni-%d", n.made), Units: n.newUnits(count, prefixes), Since: n.now}
	for slices.ContainsFunc(n.ENIs, func(o *ENI) bool { return o.Device == e.Device }) {
		e.Device++
	}
	n.ENIs = append(n.ENIs, e)
	slices.SortFunc(n.ENIs, func(a, b *ENI) int { return a.Device - b.Device })
	return e, n.now + ShownAfter
}

func (n *Node) remove(e *ENI) {
	n.ENIs = slices.DeleteFunc(n.ENIs, func(o *ENI) bool { return o == e })
}

// take gives a pod a free address: the lowest device first and of a prefix that has pods before those of one that has
// none, so that what comes late falls empty first.
func (n *Node) take() *Unit {
	for _, e := range n.ENIs {
		if !e.Usable || e.leaving {
			continue
		}
		var best *Unit
		for _, u := range e.Units {
			if u.free(n.now) > 0 && (best == nil || u.InUse > best.InUse) {
				best = u
			}
		}
		if best != nil {
			best.InUse++
			return best
		}
	}
	return nil
}

func (n *Node) release(u *Unit) {
	u.InUse--
	u.Cooling = append(u.Cooling, n.now+n.CoolDown)
}

// count is how many addresses the node has, how many of them pods hold, and how many rest.
func (n *Node) count() (all, inUse, cooling int) {
	for _, e := range n.ENIs {
		for _, u := range e.Units {
			all, inUse, cooling = all+u.size(), inUse+u.InUse, cooling+u.cooling(n.now)
		}
	}
	return all, inUse, cooling
}

// PerENI is how many units each ENI has, by device.
func (n *Node) PerENI() (out []int) {
	for _, e := range n.ENIs {
		out = append(out, len(e.Units))
	}
	return out
}

func (n *Node) calls() map[string]int { return maps.Clone(n.Calls) }
