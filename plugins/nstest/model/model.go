// Package model is a plain map of the pods' sandboxes on a node, and what a node has of them: told by the wiring contract
// and the design alone, in the lines of nstest's snapshots. It imports nothing of the product and of its tests, so that it
// is wrong in other places than they are. It is for tests only.
package model

import (
	"crypto/sha1"
	"encoding/hex"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// Kind is a way of wiring a pod.
type Kind string

// The kinds: an address of one of the node's ENIs, and a branch ENI in each of the two modes.
const (
	Regular  Kind = "regular"
	Strict   Kind = "strict"
	Standard Kind = "standard"
)

// Sandbox is what the node agent has given to a sandbox.
type Sandbox struct {
	ID, Namespace, Pod string
	Kind               Kind
	Address            netip.Addr
	VLAN               int // of a branch pod
	Table              int // of a regular pod; 0: the agent's marks choose it, 254: the main table
	Further            []Further
}

// Further is what a regular pod has on a further network card.
type Further struct {
	Address netip.Addr
	Table   int
}

func (s Sandbox) addresses() []netip.Addr {
	out := []netip.Addr{s.Address}
	for _, f := range s.Further {
		out = append(out, f.Address)
	}
	return out
}

func (s Sandbox) shares(o Sandbox) bool {
	return s.Namespace == o.Namespace && s.Pod == o.Pod || s.VLAN != 0 && o.VLAN == s.VLAN ||
		slices.ContainsFunc(s.addresses(), func(a netip.Addr) bool { return slices.Contains(o.addresses(), a) })
}

// VLANLink is the name of a branch ENI's link.
func (s Sandbox) VLANLink() string { return fmt.Sprintf("vlan.eth.%d", s.VLAN) }

// HostVeth is the name of the pod's veth on the host, with the prefix eni.
func (s Sandbox) HostVeth() string {
	name := hash(s.Namespace + "." + s.Pod)
	if s.Kind == Strict {
		return "vlan" + name
	}
	return "eni" + name
}

// FurtherVeth is the same of its interface on a further card, from 1 on.
func (s Sandbox) FurtherVeth(number int) string {
	return "eni" + hash(fmt.Sprintf("%s.%s.%d", s.Namespace, s.Pod, number))
}

func hash(of string) string {
	sum := sha1.Sum([]byte(of))
	return hex.EncodeToString(sum[:])[:11]
}

// Node is the map.
type Node struct {
	before []string
	boxes  map[string]*box
}

type box struct {
	Sandbox
	macs []string
	live bool // not: its pod, VLAN id or address has gone to a newer one, and its end is still to come
}

// New is a node that has these lines without any pod.
func New(before []string) *Node { return &Node{before: before, boxes: map[string]*box{}} }

// Add puts a sandbox on the node, or puts it on once more. What shares its pod, VLAN id or address is an older one's, of
// which something may be left until its end.
func (n *Node) Add(s Sandbox) {
	for _, o := range n.boxes {
		if o.ID != s.ID && s.shares(o.Sandbox) {
			o.live = false
		}
	}
	n.boxes[s.ID] = &box{Sandbox: s, live: true}
}

// Wired tells the MAC addresses that the pod's interfaces have.
func (n *Node) Wired(id string, macs ...string) { n.boxes[id].macs = macs }

// mac is that of an interface, once it is told.
func (b *box) mac(number int) string {
	if number < len(b.macs) {
		return b.macs[number]
	}
	return ""
}

// Remove ends a sandbox.
func (n *Node) Remove(id string) { delete(n.boxes, id) }

// Live says whether everything of the sandbox must be there.
func (n *Node) Live(id string) bool { return n.boxes[id] != nil && n.boxes[id].live }

// Sandboxes are those that have not ended, by their ids.
func (n *Node) Sandboxes() (out []Sandbox) {
	for _, id := range slices.Sorted(maps.Keys(n.boxes)) {
		out = append(out, n.boxes[id].Sandbox)
	}
	return out
}

// object is a line, and the one thing that it decides about: where packets to or from it go.
type object struct{ line, about string }

// objects are what a sandbox has on the host.
func (b *box) objects() (out []object) {
	veth, vlan, table := b.HostVeth(), b.VLANLink(), 100+b.VLAN
	family, scope, gateway := 2, "link", "192.168.32.1"
	if b.Address.Is6() {
		family, scope, gateway = 10, "universe", "fe80:ec2::1"
	}
	whole := fmt.Sprintf("/%d", b.Address.BitLen())
	add := func(about, format string, args ...any) {
		out = append(out, object{fmt.Sprintf(format, args...), about})
	}
	route := func(table int) {
		add(fmt.Sprintf("%s in %d", b.Address, table), "route %s%s dev %s scope %s table %d", b.Address, whole, veth, scope, table)
	}
	mark := "branchline:" + b.ID + "/eth0"
	if b.VLAN != 0 {
		mark += fmt.Sprintf(" vlan=%d", b.VLAN)
	}
	if b.Kind == Standard {
		mark += " mode=standard"
	}
	further := fmt.Sprintf("%s ip=%%s number=%%d", mark)
	mark += " ip=" + b.Address.String()
	if len(b.Further) > 0 {
		mark += fmt.Sprintf(" further=%d", len(b.Further))
	}
	add(veth, "link %s veth %s up=true", veth, mark)
	add(veth, "neighbour %s %s %s", veth, b.Address, b.mac(0))
	for i, f := range b.Further {
		name := b.FurtherVeth(i + 1)
		add(name, "link %s veth %s up=true", name, fmt.Sprintf(further, f.Address, i+1))
		add(name, "neighbour %s %s %s", name, f.Address, b.mac(i+1))
		add(fmt.Sprintf("%s in 511", f.Address), "route %s%s dev %s scope %s table 511", f.Address, whole, name, scope)
		if f.Table != 0 && f.Table != 254 {
			add("from "+f.Address.String(), "rule of family %d 1536: from %s%s lookup %d", family, f.Address, whole, f.Table)
		}
	}
	if b.VLAN != 0 {
		add(vlan, "link %s vlan %s up=true", vlan, mark)
		add(vlan, "route %s%s dev %s scope %s table %d", gateway, whole, vlan, scope, table)
		add(vlan, "route default via %s dev %s scope universe table %d", gateway, vlan, table)
	}
	switch b.Kind {
	case Regular:
		route(511)
		if b.Table != 0 && b.Table != 254 {
			add("from "+b.Address.String(), "rule of family %d 1536: from %s%s lookup %d", family, b.Address, whole, b.Table)
		}
	case Standard:
		route(511)
		add(veth, "rule of family %d 1537: from all iif %s lookup %d", family, veth, table)
	case Strict:
		route(510)
		route(table)
		add(vlan, "rule of family %d 10: from all iif %s lookup %d", family, vlan, table)
		add(veth, "rule of family %d 10: from all iif %s lookup %d", family, veth, table)
	}
	return out
}

// has is what a live sandbox alone decides about: its links, its address, and the ways to it.
func (b *box) has() []string {
	out, tables := []string{b.HostVeth()}, []int{510, 511}
	if b.Kind != Strict { // its rules come first
		out = append(out, "from "+b.Address.String())
	}
	if b.VLAN != 0 {
		out = append(out, b.VLANLink())
	}
	if b.Kind == Strict {
		tables = append(tables, 100+b.VLAN)
	}
	for i, f := range b.Further {
		out = append(out, b.FurtherVeth(i+1), "from "+f.Address.String())
	}
	for _, t := range tables {
		for _, a := range b.addresses() {
			out = append(out, fmt.Sprintf("%s in %d", a, t))
		}
	}
	return out
}

// Wrong says how a node that has these lines differs from the map, "- " for what is missing and "+ " for what is too much.
// What a live sandbox has is exactly right; of one whose end is still to come there may be something left, but nothing
// that decides about what is a live one's.
func (n *Node) Wrong(have []string) (wrong []string) {
	must, may, taken := slices.Clone(n.before), map[string]bool{}, map[string]bool{}
	for _, b := range n.boxes {
		if b.live {
			for _, o := range b.objects() {
				must = append(must, o.line)
			}
			for _, h := range b.has() {
				taken[h] = true
			}
		}
	}
	for _, b := range n.boxes {
		if !b.live {
			for _, o := range b.objects() {
				may[o.line] = !taken[o.about]
			}
		}
	}
	have = slices.Clone(have)
	for _, l := range must {
		if i := slices.Index(have, l); i >= 0 {
			have = slices.Delete(have, i, i+1)
		} else {
			wrong = append(wrong, "- "+l)
		}
	}
	for _, l := range have {
		if !may[l] {
			wrong = append(wrong, "+ "+l)
		}
	}
	return wrong
}
