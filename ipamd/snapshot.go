package ipamd

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// maxENIs is how many ENIs this instance may have.
func (a *Agent) maxENIs() int {
	t := a.limits()
	n := t.MaxInterfaces
	if cards := t.InterfacesPerNetworkCard; t.DefaultNetworkCard == 0 && len(cards) > 0 {
		n = min(n, cards[0])
	}
	if limit := a.opt.Config.MaxENI; limit > 0 {
		n = min(n, limit)
	}
	return n
}

// snapshot is what the pool decides from.
func (a *Agent) snapshot() pool.Snapshot {
	s, _ := a.placedSnapshot()
	return s
}

func (a *Agent) placedSnapshot() (pool.Snapshot, placed) {
	at := a.place()
	// Allocations and who waits are read at one moment, as far as they can be: a pod between the two is not counted.
	view := a.store.View()
	all, twice := a.inventory.ENIs(), a.inventory.Twice()
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.opt.Config
	s := pool.Snapshot{
		Targets: pool.Targets{
			WarmENIs: c.WarmENITarget, WarmPrefixes: c.WarmPrefixTarget, WarmIPs: c.WarmIPTarget, MinimumIPs: c.MinimumIPTarget,
			MaxENIs: a.maxENIs(), Places: max(0, a.limits().IPv4PerInterface-1), Prefixes: a.usesPrefixes(), IPv6: c.IPv6,
		},
		Waiting: int(a.waiting.Load()), NoENI: at.Reason != placement.None, Settled: at.cordoned, Frozen: c.Frozen(),
	}
	noPrefix := func(subnetID string) bool { return a.opt.Now().Before(a.noPrefix[subnetID]) }
	if len(at.Places) > 0 {
		s.NoPrefix = noPrefix(at.Places[0].SubnetID)
	}
	// Pods' ENIs and the trunk are on card 0; what is on others only counts for the instance as a whole.
	elsewhere := 0
	for _, e := range all {
		if e.Card == 0 {
			s.Attached++
		} else {
			elsewhere++
		}
	}
	if n := a.limits().MaxInterfaces; n > 0 {
		s.MaxENIs = min(s.MaxENIs, n-elsewhere)
	}
	_, trunk := a.inventory.Trunk()
	s.KeepTrunkSlot = a.opt.Config.PodENI && a.supported() && !trunk
	for id := range a.joining {
		if !slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			s.Attached++
		}
	}
	held, cooling := make([]netip.Addr, 0, len(view.Allocations)+len(a.orphans)), make([]netip.Addr, 0, len(view.Cooling))
	for _, al := range view.Allocations {
		if al.Regular != nil {
			held = append(held, al.Regular.Address)
		}
	}
	held = slices.AppendSeq(held, maps.Keys(a.orphans))
	for _, c := range view.Cooling {
		cooling = append(cooling, c.Address)
	}
	for _, e := range all {
		if e.Trunk || e.Unmanaged {
			continue
		}
		p := pool.ENI{
			ID: e.ID, Primary: e.Primary(), Device: e.Device, Retiring: slices.Contains(view.Retiring, e.ID), Draining: !at.Serves(e.SubnetID, e.Primary()),
			Foreign: !e.Made, Full: a.opt.Now().Before(a.full[e.SubnetID].until), NoPrefix: noPrefix(e.SubnetID),
		}
		for _, u := range e.Units() {
			p.Units = append(p.Units, pool.Unit{
				Prefix: u, InUse: countIn(held, u), Cooling: countIn(cooling, u),
				Leaving: twice[u] || slices.ContainsFunc(view.Leaving, func(l store.Leaving) bool { return l.ENIID == e.ID && l.Prefix == u }),
			})
		}
		// What a pod holds is there, also while a source shows fewer addresses.
		for _, al := range view.Allocations {
			if r := al.Regular; r != nil && r.ENIID == e.ID && !e.Owns(r.Address) {
				p.Units = append(p.Units, pool.Unit{Prefix: netip.PrefixFrom(r.Address, r.Address.BitLen()), InUse: 1})
			}
		}
		s.ENIs = append(s.ENIs, p)
	}
	return s, at
}

func countIn(addrs []netip.Addr, u netip.Prefix) (n int) {
	for _, a := range addrs {
		if u.Contains(a) {
			n++
		}
	}
	return n
}

// usesPrefixes says whether the node is to have prefixes: ENABLE_PREFIX_DELEGATION or IPv6, on a Nitro instance.
func (a *Agent) usesPrefixes() bool {
	return (a.opt.Config.PrefixDelegation || a.opt.Config.IPv6) && (a.limits().Hypervisor == "nitro" || a.limits().BareMetal)
}

// candidates are the addresses that may be given to a pod if the store holds them for nobody: those of the lowest device
// first, so that later ENIs fall empty first, and of a prefix that has pods before those of one that has none.
func (a *Agent) candidates() []store.Regular {
	all, twice, view, at := a.inventory.ENIs(), a.inventory.Twice(), a.store.View(), a.place()
	busy := make(map[netip.Addr]bool, len(view.Allocations)+len(view.Cooling))
	for _, al := range view.Allocations {
		if al.Regular != nil {
			busy[al.Regular.Address] = true
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.Copy(busy, a.orphans)
	cooling := make(map[netip.Addr]bool, len(view.Cooling))
	for _, c := range view.Cooling {
		cooling[c.Address] = true
	}
	var out []store.Regular
	for _, e := range all {
		placed, routed := a.routed[e.ID]
		if !e.Usable() || !routed || !at.Serves(e.SubnetID, e.Primary()) {
			continue
		}
		units := e.Units()
		users := make(map[netip.Prefix]int, len(units))
		for addr := range busy {
			for _, p := range e.Prefixes {
				if p.Contains(addr) {
					users[p]++
				}
			}
		}
		slices.SortStableFunc(units, func(a, b netip.Prefix) int { return cmp.Compare(users[b], users[a]) })
		for _, u := range units {
			if twice[u] {
				continue // it is this ENI's or another's
			}
			for addr := range givable(u, busy, cooling) {
				if placed.Holds(addr) && !busy[addr] && !twice[netip.PrefixFrom(addr, addr.BitLen())] {
					out = append(out, store.Regular{Address: addr, ENIID: e.ID, Device: e.Device, RouteTable: hostnet.Table(e.Device)})
				}
			}
		}
	}
	return out
}

// nextCooled is how long until the next address has cooled down; 0 where none cools.
func (a *Agent) nextCooled() time.Duration {
	var next time.Duration
	for _, c := range a.store.View().Cooling {
		if d := c.Until.Sub(a.opt.Now()) + time.Millisecond; next == 0 || d < next {
			next = max(d, time.Millisecond)
		}
	}
	return next
}
