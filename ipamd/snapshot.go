package ipamd

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// cardLimit is how many ENIs a network card can have.
func (a *Agent) cardLimit(card int) int {
	t := a.limits()
	switch cards := t.InterfacesPerNetworkCard; {
	case card == 0 && (t.DefaultNetworkCard != 0 || len(cards) == 0):
		return t.MaxInterfaces
	case card < len(cards):
		return cards[card]
	}
	return 0
}

// snapshot is what the pool decides from for the first network card.
func (a *Agent) snapshot() pool.Snapshot {
	s, _ := a.placedSnapshot()
	return s
}

func (a *Agent) placedSnapshot() (pool.Snapshot, placed) {
	all := a.cardPools(0)
	return all[0].Snapshot, all[0].at
}

// cardPool is one network card's part of the pool.
type cardPool struct {
	pool.Snapshot
	card    int
	at      placed
	gathers time.Duration // how long it waits yet for more pods, as of the snapshot
	// coming is set where room comes without a step: an ENI is attached whose addresses are not known yet, as IMDS shows it
	// late; or one is on its way out, or being made, which the store says of both in the same way.
	coming bool
	room   int // how many ENIs may be attached to all cards together yet
}

// cardPools are the parts of the pool, the first network card's first; of all cards where none is named.
func (a *Agent) cardPools(cards ...int) (out []cardPool) {
	at := a.place()
	// Allocations and who waits are read at one moment, as far as they can be: a pod between the two is not counted.
	now := moment{view: a.store.View(), all: a.inventory.ENIs(), twice: a.inventory.Twice()}
	_, now.trunk = a.inventory.Trunk()
	if len(cards) == 0 {
		cards = a.pooledCards(now.all)
	}
	when := a.opt.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, card := range cards {
		p := cardPool{card: card, at: a.cardPlace(at, card), gathers: a.gathers(card, when)}
		p.Snapshot = a.cardSnapshot(now, card, p.at)
		p.room = a.roomForENIs(now)
		p.coming = a.joiningBeside(now.all, card) || slices.ContainsFunc(p.ENIs, func(e pool.ENI) bool { return e.Retiring })
		out = append(out, p)
	}
	return out
}

// moment is what the parts of the pool are read off.
type moment struct {
	view  store.View
	all   []enis.ENI
	twice map[netip.Prefix]bool
	trunk bool
}

// cardSnapshot is called with the lock held.
func (a *Agent) cardSnapshot(now moment, card int, at placed) pool.Snapshot {
	c := a.opt.Config
	s := pool.Snapshot{
		Targets: pool.Targets{
			WarmENIs: c.WarmENITarget, WarmPrefixes: c.WarmPrefixTarget, WarmIPs: c.WarmIPTarget, MinimumIPs: c.MinimumIPTarget, OnDemand: card != 0,
			Places: max(0, a.limits().IPv4PerInterface-1), Prefixes: a.usesPrefixes(), IPv6: c.IPv6,
		},
		Waiting: a.waiting[card].besides(now.view.Allocations), NoENI: at.Reason != placement.None, Settled: at.cordoned, Frozen: c.Frozen(),
	}
	noPrefix := func(subnetID string) bool { return a.opt.Now().Before(a.noPrefix[subnetID]) }
	if len(at.Places) > 0 {
		s.NoPrefix = noPrefix(at.Places[0].SubnetID)
	}
	here, elsewhere := 0, 0
	for _, e := range now.all {
		if e.Card == card {
			here++
		} else {
			elsewhere++
		}
	}
	for id, j := range a.joining {
		switch {
		case slices.ContainsFunc(now.all, func(e enis.ENI) bool { return e.ID == id }):
		case j.card == card:
			here++
		default:
			elsewhere++
		}
	}
	trunkComes := a.trunkComes(now)
	s.Attached, s.MaxENIs = here, a.slotsOn(card, elsewhere, trunkComes)
	s.KeepTrunkSlot = trunkComes && card == 0 // on no other card there is a trunk
	held, cooling := a.taken(now.view)
	for _, e := range now.all {
		if e.Card != card || e.Trunk || e.Unmanaged {
			continue
		}
		p := pool.ENI{
			ID: e.ID, Primary: e.Primary(), Device: e.Device, Retiring: slices.Contains(now.view.Retiring, e.ID), Draining: !a.serves(at, e),
			Foreign: !e.Made, Full: a.opt.Now().Before(a.full[e.SubnetID].until), NoPrefix: noPrefix(e.SubnetID),
		}
		for _, u := range e.Units() {
			p.Units = append(p.Units, pool.Unit{
				Prefix: u, InUse: countIn(held, u), Cooling: countIn(cooling, u),
				Leaving: now.twice[u] || slices.ContainsFunc(now.view.Leaving, func(l store.Leaving) bool { return l.ENIID == e.ID && l.Prefix == u }),
			})
		}
		// What a pod holds is there, also while a source shows fewer addresses.
		for _, al := range now.view.Allocations {
			for _, r := range al.Regulars() {
				if r.ENIID == e.ID && !e.Owns(r.Address) {
					p.Units = append(p.Units, pool.Unit{Prefix: netip.PrefixFrom(r.Address, r.Address.BitLen()), InUse: 1})
				}
			}
		}
		for _, c := range now.view.Cooling { // and so does what rests
			if c.ENIID == e.ID && !e.Owns(c.Address) {
				p.Units = append(p.Units, pool.Unit{Prefix: netip.PrefixFrom(c.Address, c.Address.BitLen()), Cooling: 1})
			}
		}
		s.ENIs = append(s.ENIs, p)
	}
	return s
}

// joiningBeside says whether an ENI is attached to the card that is not among those. It is called with the lock held.
func (a *Agent) joiningBeside(all []enis.ENI, card int) bool {
	for id, j := range a.joining {
		if j.card == card && !slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			return true
		}
	}
	return false
}

// totalENIs is how many ENIs all cards together may have.
func (a *Agent) totalENIs() int {
	n := a.limits().MaxInterfaces
	if limit := a.opt.Config.MaxENI; limit > 0 && a.opt.Config.MultiNIC {
		n = min(n, limit)
	}
	return n
}

// trunkComes says whether a trunk is wanted and not there.
func (a *Agent) trunkComes(now moment) bool {
	return a.opt.Config.PodENI && a.supported() && !now.trunk
}

// roomForENIs is how many ENIs all cards together may have yet, the trunk's slot left out. It is called with the lock held.
func (a *Agent) roomForENIs(now moment) int {
	n := len(now.all)
	for id := range a.joining {
		if !slices.ContainsFunc(now.all, func(e enis.ENI) bool { return e.ID == id }) {
			n++
		}
	}
	if a.trunkComes(now) {
		n++
	}
	return a.totalENIs() - n
}

// slotsOn is how many ENIs a card may have while others have so many. The trunk is on the first card.
func (a *Agent) slotsOn(card, elsewhere int, trunkComes bool) int {
	total, own := a.totalENIs(), a.cardLimit(card)
	if total == 0 {
		return 0
	}
	if limit := a.opt.Config.MaxENI; limit > 0 && !a.opt.Config.MultiNIC {
		own = min(own, limit) // what is on other cards is none of the agent's
	}
	if trunkComes && card != 0 {
		total--
	}
	return min(own, total-elsewhere)
}

// taken are the addresses that pods hold, whoever remembers them, and those that rest. It is called with the lock held.
func (a *Agent) taken(view store.View) (held, cooling []netip.Addr) {
	held, cooling = make([]netip.Addr, 0, len(view.Allocations)+len(a.orphans)), make([]netip.Addr, 0, len(view.Cooling))
	for _, al := range view.Allocations {
		for _, r := range al.Regulars() {
			held = append(held, r.Address)
		}
	}
	held = slices.AppendSeq(held, maps.Keys(a.orphans))
	for _, c := range view.Cooling {
		cooling = append(cooling, c.Address)
	}
	return held, cooling
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

// candidates are the addresses that may be given to a pod if the store holds them for nobody, of all network cards: those of
// the lowest device first, so that later ENIs fall empty first, and of a prefix that has pods before those of one that has
// none.
func (a *Agent) candidates() []store.Regular {
	all, twice, view, at := a.inventory.ENIs(), a.inventory.Twice(), a.store.View(), a.place()
	busy := make(map[netip.Addr]bool, len(view.Allocations)+len(view.Cooling))
	for _, al := range view.Allocations {
		for _, r := range al.Regulars() {
			busy[r.Address] = true
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
		if !e.Usable() || !routed || !a.serves(at, e) {
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
					out = append(out, store.Regular{Address: addr, ENIID: e.ID, Card: e.Card, Device: e.Device, RouteTable: slotOf(e).Table()})
				}
			}
		}
	}
	return out
}

// ofCard are those of one network card.
func ofCard(candidates []store.Regular, card int) (out []store.Regular) {
	for _, c := range candidates {
		if c.Card == card {
			out = append(out, c)
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
