package hostnet

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Marks is the nftables table that marks packets, as it is there.
type Marks struct {
	// Missing is set where this kernel has no nf_tables: there is nothing to plan then.
	Missing bool
	// Intact says that chains and rules are as this version makes them for Shape.
	Intact bool
	Shape  Shape
	// Devices says by which ENI what comes from an address leaves: its slot's number, which on network card 0 is its device
	// index.
	Devices map[netip.Prefix]int
}

// Shape is what the table's rules depend on.
type Shape struct {
	IPv6       bool
	VethPrefix string
	// Further are the numbers of the slots on further network cards that something is sent to, in order.
	Further string
}

func (s Shape) further() (out []int) {
	for field := range strings.FieldsSeq(s.Further) {
		if n, err := strconv.Atoi(field); err == nil {
			out = append(out, n)
		}
	}
	return out
}

// shape is what is desired of the table's rules.
func (d Desired) shape() Shape {
	var further []int
	for _, s := range d.slots() {
		if n := s.number(); s.Card > 0 && n >= 0 {
			further = append(further, n)
		}
	}
	slices.Sort(further)
	return Shape{d.IPv6, d.VethPrefix, strings.Trim(fmt.Sprint(further), "[]")}
}

// MarksChange is one transaction: all of it happens, or nothing.
type MarksChange struct {
	// Rebuild makes the table anew, with Add as all that it holds.
	Rebuild bool
	Shape   Shape
	Add     map[netip.Prefix]int
	Delete  map[netip.Prefix]int
}

func (c MarksChange) String() string {
	if c.Rebuild {
		return fmt.Sprintf("make the nftables table %s, with %d prefixes", MarksTable, len(c.Add))
	}
	return fmt.Sprintf("change the nftables table %s: %d prefixes more, %d fewer", MarksTable, len(c.Add), len(c.Delete))
}

// MarksTable is the nftables table's name, in the family that pods have.
const MarksTable = "branchline"

// devices is the map from source prefix to slot number that is desired; no two prefixes overlap.
func (d Desired) devices(there map[netip.Prefix]int) map[netip.Prefix]int {
	type entry struct {
		p      netip.Prefix
		device int
	}
	var all []entry
	for _, e := range d.ENIs {
		for _, p := range e.Prefixes {
			if n := e.Slot().number(); d.family(p.Addr()) && n >= 0 {
				all = append(all, entry{p.Masked(), n})
			}
		}
	}
	for p, device := range there {
		if d.family(p.Addr()) && d.kept(slotOf(device).Table()) {
			all = append(all, entry{p, device})
		}
	}
	// An address that lies in a prefix of its own ENI is covered. Two ENIs never have the same address; should the
	// sources say so for a moment, the one that is seen now wins, by its lower device number.
	slices.SortStableFunc(all, func(a, b entry) int {
		return cmp.Or(cmp.Compare(a.p.Bits(), b.p.Bits()), a.p.Addr().Compare(b.p.Addr()), cmp.Compare(a.device, b.device))
	})
	out := map[netip.Prefix]int{}
	for _, e := range all {
		covered := false
		for bits := e.p.Bits(); bits >= 0 && !covered; bits-- {
			wider, _ := e.p.Addr().Prefix(bits)
			_, covered = out[wider]
		}
		if !covered {
			out[e.p] = e.device
		}
	}
	return out
}

func planMarks(d Desired, m Marks) (c MarksChange, needed bool) {
	if m.Missing {
		return c, false
	}
	shape := d.shape()
	want := d.devices(m.Devices)
	c = MarksChange{Shape: shape}
	if !m.Intact || m.Shape != shape {
		c.Rebuild, c.Add = true, want
		return c, true
	}
	c.Add, c.Delete = without(want, m.Devices), without(m.Devices, want)
	return c, len(c.Add)+len(c.Delete) > 0
}

// without returns what of a is not the same in b.
func without(a, b map[netip.Prefix]int) map[netip.Prefix]int {
	out := map[netip.Prefix]int{}
	for p, device := range a {
		if other, ok := b[p]; !ok || other != device {
			out[p] = device
		}
	}
	return out
}

func (m Marks) apply(c MarksChange) Marks {
	m.Devices = maps.Clone(m.Devices)
	if m.Devices == nil || c.Rebuild {
		m.Devices = map[netip.Prefix]int{}
	}
	maps.DeleteFunc(m.Devices, func(p netip.Prefix, _ int) bool { _, gone := c.Delete[p]; return gone })
	maps.Copy(m.Devices, c.Add)
	m.Intact, m.Shape = true, c.Shape
	return m
}
