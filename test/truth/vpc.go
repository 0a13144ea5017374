// Package truth is the other side of the node agent's model tests, in plain maps: what the VPC believes of one instance's
// ENIs (VPC), and what the sandboxes on the instance were told (Sandboxes). It judges the agent and so imports nothing of
// this module: a mistake of ours can't be in both.
package truth

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// What an instance of this model may have: those of an m5.large, and where it has a second network card, a few more there.
const (
	MaxENIs      = 3
	AddressesPer = 10
	MaxOnSecond  = 2
)

// keep is how far back the VPC's former states are known.
const keep = 10 * time.Minute

// ENI is an interface as the VPC has it. Its slices are never changed in place.
type ENI struct {
	ID, MAC, Description string
	Card                 int
	Device               int          // on its network card; -1: not attached
	Addresses            []netip.Addr // the primary one first
	Prefixes             []netip.Prefix
	IPv6Addresses        []netip.Addr // the host's own: none is for pods
	IPv6Prefixes         []netip.Prefix
	Tags                 map[string]string
}

// Has says whether a pod's traffic from the address is let through: it is the ENI's, and not the host's own.
func (e ENI) Has(a netip.Addr) bool {
	holds := func(p netip.Prefix) bool { return p.Contains(a) }
	return slices.Contains(e.Addresses, a) || slices.ContainsFunc(e.Prefixes, holds) || slices.ContainsFunc(e.IPv6Prefixes, holds)
}

// Refused is the VPC's no, with EC2's code.
type Refused struct{ Code, Message string }

func (r Refused) Error() string { return r.Code + ": " + r.Message }

func refuse(code, format string, args ...any) error {
	return Refused{code, fmt.Sprintf(format, args...)}
}

// VPC has one instance. It is safe for use by several goroutines.
type VPC struct {
	now func() time.Time

	mu   sync.Mutex
	past []moment // the last one is now
	made int
}

type moment struct {
	at   time.Time
	enis map[string]ENI
}

// New makes a VPC with an instance that has its primary ENI, with one address of either family.
func New(now func() time.Time) *VPC {
	v := &VPC{now: now, past: []moment{{now(), map[string]ENI{}}}}
	e, _ := v.Create(0, 0, "", nil)
	_ = v.Attach(e.ID, 0, 0)
	return v
}

// Now returns the ENIs as they are, by id. It must not be changed.
func (v *VPC) Now() map[string]ENI {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.past[len(v.past)-1].enis
}

// At returns the ENIs as they were.
func (v *VPC) At(t time.Time) map[string]ENI {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, m := range slices.Backward(v.past) {
		if !m.at.After(t) {
			return m.enis
		}
	}
	return v.past[0].enis
}

// change replaces the state by what f makes of a copy.
func (v *VPC) change(f func(map[string]ENI) error) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	next, now := maps.Clone(v.past[len(v.past)-1].enis), v.now()
	if err := f(next); err != nil {
		return err
	}
	v.past = append(v.past, moment{now, next})
	for len(v.past) > 1 && now.Sub(v.past[1].at) > keep {
		v.past = v.past[1:]
	}
	return nil
}

func (v *VPC) edit(id string, f func(map[string]ENI, ENI) (ENI, error)) (out ENI, err error) {
	err = v.change(func(all map[string]ENI) error {
		e, ok := all[id]
		if !ok {
			return refuse("InvalidNetworkInterfaceID.NotFound", "no interface %s", id)
		}
		if out, err = f(all, e); err == nil {
			all[id] = out
		}
		return err
	})
	return out, err
}

// free is the lowest address that nobody has: what was given back is given again as early as can be.
func free(all map[string]ENI) netip.Addr {
	a := netip.MustParseAddr("192.168.0.4")
	for taken(all, a) {
		a = a.Next()
	}
	return a
}

func taken(all map[string]ENI, a netip.Addr) bool {
	for _, e := range all {
		if e.Has(a) {
			return true
		}
	}
	return false
}

func freePrefix(all map[string]ENI) netip.Prefix {
	for n := 0; ; n += 16 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, 1 + byte(n>>8), byte(n)}), 28)
		if !taken(all, p.Addr()) {
			return p
		}
	}
}

func (e ENI) grow(all map[string]ENI, addresses, prefixes int) (ENI, []netip.Addr, []netip.Prefix) {
	var added []netip.Addr
	var blocks []netip.Prefix
	for range addresses {
		added = append(added, free(all))
		e.Addresses = append(slices.Clip(e.Addresses), added[len(added)-1])
		all[e.ID] = e
	}
	for range prefixes {
		blocks = append(blocks, freePrefix(all))
		e.Prefixes = append(slices.Clip(e.Prefixes), blocks[len(blocks)-1])
		all[e.ID] = e
	}
	return e, added, blocks
}

// Create makes an ENI with a primary address and others, or prefixes, beside it.
func (v *VPC) Create(secondary, prefixes int, description string, tags map[string]string) (e ENI, err error) {
	err = v.change(func(all map[string]ENI) error {
		if 1+secondary+prefixes > AddressesPer {
			return refuse("PrivateIpAddressLimitExceeded", "%d are too many", 1+secondary+prefixes)
		}
		v.made++
		e = ENI{ID: fmt.Sprintf("eni-%d", v.made), MAC: fmt.Sprintf("06:00:00:00:00:%02x", v.made), Device: -1, Description: description, Tags: tags}
		e, _, _ = e.grow(all, 1+secondary, prefixes)
		e.IPv6Addresses = []netip.Addr{freeIPv6(all)}
		all[e.ID] = e
		return nil
	})
	return e, err
}

// Delete removes an ENI that is not attached.
func (v *VPC) Delete(id string) error {
	return v.change(func(all map[string]ENI) error {
		switch e, ok := all[id]; {
		case !ok:
			return refuse("InvalidNetworkInterfaceID.NotFound", "no interface %s", id)
		case e.Device >= 0:
			return refuse("InvalidParameterValue", "interface %s is in use", id)
		}
		delete(all, id)
		return nil
	})
}

// Attach puts an ENI at a device index of a network card of the instance.
func (v *VPC) Attach(id string, card, device int) error {
	_, err := v.edit(id, func(all map[string]ENI, e ENI) (ENI, error) {
		n, most := 0, []int{MaxENIs, MaxOnSecond}[card]
		for _, o := range all {
			if o.Card == card && o.Device == device {
				return e, refuse("InvalidParameterValue", "device index %d is taken", device)
			}
			if o.Card == card && o.Device >= 0 {
				n++
			}
		}
		switch {
		case e.Device >= 0:
			return e, refuse("InvalidNetworkInterface.InUse", "interface %s is in use", id)
		case n >= most:
			return e, refuse("AttachmentLimitExceeded", "%d interfaces are there", n)
		}
		e.Card, e.Device = card, device
		return e, nil
	})
	return err
}

// Detach takes an ENI off the instance.
func (v *VPC) Detach(id string) error {
	_, err := v.edit(id, func(_ map[string]ENI, e ENI) (ENI, error) {
		switch {
		case e.Device < 0:
			return e, refuse("InvalidAttachmentID.NotFound", "interface %s is not attached", id)
		case e.Card == 0 && e.Device == 0:
			return e, refuse("OperationNotPermitted", "interface %s is the primary", id)
		}
		e.Device = -1
		return e, nil
	})
	return err
}

// Assign gives an ENI more addresses, or prefixes.
func (v *VPC) Assign(id string, addresses, prefixes int) (got []netip.Addr, blocks []netip.Prefix, err error) {
	_, err = v.edit(id, func(all map[string]ENI, e ENI) (ENI, error) {
		if len(e.Addresses)+len(e.Prefixes)+addresses+prefixes > AddressesPer {
			return e, refuse("PrivateIpAddressLimitExceeded", "%d more are too many", addresses+prefixes)
		}
		e, got, blocks = e.grow(all, addresses, prefixes)
		return e, nil
	})
	return got, blocks, err
}

// Unassign takes addresses and prefixes of an ENI back: all of them, or none where one is not there.
func (v *VPC) Unassign(id string, addresses []netip.Addr, prefixes []netip.Prefix) error {
	_, err := v.edit(id, func(_ map[string]ENI, e ENI) (ENI, error) {
		for _, a := range addresses {
			if slices.Index(e.Addresses, a) < 1 {
				return e, refuse("InvalidParameterValue", "%s is not assigned to %s", a, id)
			}
		}
		for _, p := range prefixes {
			if !slices.Contains(e.Prefixes, p) {
				return e, refuse("InvalidParameterValue", "%s is not assigned to %s", p, id)
			}
		}
		e.Addresses = slices.DeleteFunc(slices.Clone(e.Addresses), func(a netip.Addr) bool { return slices.Contains(addresses, a) })
		e.Prefixes = slices.DeleteFunc(slices.Clone(e.Prefixes), func(p netip.Prefix) bool { return slices.Contains(prefixes, p) })
		return e, nil
	})
	return err
}

// The subnet's IPv6 half is a /64. Single addresses are of its first /80, prefixes are the others.
var ipv6Half = netip.MustParsePrefix("2001:db8:0:1::/64")

// freeIPv6 is the lowest single address that nobody has, freeIPv6Prefix the lowest prefix.
func freeIPv6(all map[string]ENI) netip.Addr {
	a := ipv6Half.Addr().Next()
	for anyone(all, func(e ENI) bool { return slices.Contains(e.IPv6Addresses, a) }) {
		a = a.Next()
	}
	return a
}

func freeIPv6Prefix(all map[string]ENI) netip.Prefix {
	for n := byte(1); ; n++ {
		b := ipv6Half.Addr().As16()
		b[9] = n
		p := netip.PrefixFrom(netip.AddrFrom16(b), 80)
		if !anyone(all, func(e ENI) bool { return slices.Contains(e.IPv6Prefixes, p) }) {
			return p
		}
	}
}

func anyone(all map[string]ENI, has func(ENI) bool) bool {
	for _, e := range all {
		if has(e) {
			return true
		}
	}
	return false
}

// AssignIPv6 gives an ENI more IPv6 addresses, or prefixes (/80).
func (v *VPC) AssignIPv6(id string, addresses, prefixes int) (blocks []netip.Prefix, err error) {
	_, err = v.edit(id, func(all map[string]ENI, e ENI) (ENI, error) {
		if len(e.IPv6Addresses)+len(e.IPv6Prefixes)+addresses+prefixes > AddressesPer {
			return e, refuse("PrivateIpAddressLimitExceeded", "%d more are too many", addresses+prefixes)
		}
		for range addresses {
			e.IPv6Addresses = append(slices.Clip(e.IPv6Addresses), freeIPv6(all))
			all[e.ID] = e
		}
		for range prefixes {
			blocks = append(blocks, freeIPv6Prefix(all))
			e.IPv6Prefixes = append(slices.Clip(e.IPv6Prefixes), blocks[len(blocks)-1])
			all[e.ID] = e
		}
		return e, nil
	})
	return blocks, err
}

// UnassignIPv6 takes a prefix of an ENI back.
func (v *VPC) UnassignIPv6(id string, p netip.Prefix) error {
	_, err := v.edit(id, func(_ map[string]ENI, e ENI) (ENI, error) {
		if !slices.Contains(e.IPv6Prefixes, p) {
			return e, refuse("InvalidParameterValue", "%s is not assigned to %s", p, id)
		}
		e.IPv6Prefixes = slices.DeleteFunc(slices.Clone(e.IPv6Prefixes), func(o netip.Prefix) bool { return o == p })
		return e, nil
	})
	return err
}
