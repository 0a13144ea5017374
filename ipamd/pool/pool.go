// Package pool decides how many addresses the node should have and which EC2 steps get it there. It is a pure function
// of a snapshot: it calls nothing and remembers nothing.
//
// What EC2 gives in one piece is a unit: one secondary address, or one prefix (a /28 of 16 addresses). An ENI has as
// many places for units as its instance type allows secondary addresses, whichever kind is in them.
package pool

import (
	"cmp"
	"net/netip"
	"slices"
)

// Targets are the environment's.
type Targets struct {
	// WarmENIs is WARM_ENI_TARGET: so many ENIs' worth of free addresses. It counts where no other target is set.
	WarmENIs int
	// WarmPrefixes is WARM_PREFIX_TARGET, for nodes with prefixes; negative: not set. It comes before WarmENIs.
	WarmPrefixes int
	// WarmIPs and MinimumIPs are WARM_IP_TARGET and MINIMUM_IP_TARGET; either above 0 comes before the others.
	WarmIPs, MinimumIPs int
	// MaxENIs is how many interfaces the card may have, by the instance's type, MAX_ENI and what other cards have.
	MaxENIs int
	// Places is how many units an ENI of this instance type can have.
	Places int
	// Prefixes is ENABLE_PREFIX_DELEGATION, on a type that can.
	Prefixes bool
	// OnDemand is a further network card's: nothing is kept ahead. None of the warm targets counts then.
	OnDemand bool
	// IPv6: pods have IPv6 addresses. Nothing above counts then but Prefixes: whether the instance can have any.
	IPv6 bool
}

// PrefixSize is how many addresses an IPv4 prefix has.
const PrefixSize = 16

func (t Targets) byAddress() bool { return !t.OnDemand && (t.WarmIPs > 0 || t.MinimumIPs > 0) }

// whole says that an ENI is always filled, and given back whole: the target is in ENIs.
func (t Targets) whole() bool {
	return !t.OnDemand && !t.byAddress() && !(t.Prefixes && t.WarmPrefixes >= 0)
}

func (t Targets) unit() int {
	if t.Prefixes {
		return PrefixSize
	}
	return 1
}

// Snapshot is everything the decision depends on. There is one for each network card.
type Snapshot struct {
	Targets
	ENIs []ENI
	// Attached counts every interface of the card: the trunk and those that the agent keeps its hands off, too.
	Attached int
	// KeepTrunkSlot is set while a trunk is wanted and not there.
	KeepTrunkSlot bool
	// Waiting counts the pods that wait for an address at this moment.
	Waiting int
	// NoENI is set while no ENI can be had: no ENIConfig, a limit of the account, no subnet with an address left.
	NoENI bool
	// NoPrefix is set while a new ENI's subnet has no free prefix.
	NoPrefix bool
	// Settled keeps the ENIs as they are, no other and none less: the node is cordoned. Frozen leaves all as it is: somebody
	// else provides.
	Settled, Frozen bool
	// Held is how many of the addresses above the target are kept yet, as they may be wanted again soon, and HeldENIs that
	// no ENI that serves goes for that reason: see Patience.
	Held     int
	HeldENIs bool
}

// Kind of a step.
type Kind int

const (
	// Assign asks for Count more units on the ENI.
	Assign Kind = iota
	// Attach creates an ENI with Count units and attaches it.
	Attach
	// Unassign gives Units of the ENI back.
	Unassign
	// Retire detaches and deletes the ENI.
	Retire
)

// Step is one thing to do in EC2.
type Step struct {
	Kind     Kind
	ENIID    string // empty for Attach
	Count    int    // of Assign and Attach
	Prefixes bool   // whether they are prefixes
	Units    []netip.Prefix
}

// right says whether a unit is of the kind that the node is to have. Where a subnet has no prefix left, a single address
// is better than none.
func (s Snapshot) right(e ENI, u Unit) bool {
	return u.IsPrefix() == s.Prefixes || !u.IsPrefix() && e.NoPrefix
}

// steady counts the addresses that count for the target: those that pods hold, and the free ones of units of the
// right kind. Cooling ones can't be given, so they do not count.
func (s Snapshot) steady() (n int) {
	for _, e := range s.ENIs {
		for _, u := range e.Units {
			n += u.InUse
			if e.serves() && s.right(e, u) {
				n += u.free()
			}
		}
	}
	return n
}

func (s Snapshot) inUse() (n int) {
	for _, e := range s.ENIs {
		n += e.inUse()
	}
	return n
}

// cooling counts the addresses that rest.
func (s Snapshot) cooling() (n int) {
	for _, e := range s.ENIs {
		for _, u := range e.Units {
			n += u.Cooling
		}
	}
	return n
}

// Target is how many addresses, those in use among them and those that rest not, the node should have at this moment. It is
// never less than what is in use and what waits, and never 0 but on demand: a node without an address can't be ready. MINIMUM_IP_TARGET
// is a floor of what the node has, so that resting addresses count for it: to make up for them would be two calls a pod.
func Target(s Snapshot) int {
	demand, t := s.inUse()+s.Waiting, s.Targets
	var want int
	switch {
	case t.OnDemand:
		return demand
	case t.IPv6:
		want = demand
	case t.byAddress():
		want = max(demand+t.WarmIPs, t.MinimumIPs-s.cooling())
	case !t.whole():
		want = demand + t.WarmPrefixes*PrefixSize
	default:
		want = demand + t.WarmENIs*t.Places*t.unit()
	}
	return max(want, s.inUse()+1)
}

// Missing is how many addresses the node is below its target.
func Missing(s Snapshot) int { return max(0, Target(s)-s.steady()) }

// Surplus is how many addresses the node has above its target, those that rest not counted.
func Surplus(s Snapshot) int { return max(0, s.steady()-Target(s)) }

// Free counts the addresses that can be given now, whatever kind of unit they are of.
func Free(s Snapshot) (n int) {
	for _, e := range s.ENIs {
		for _, u := range e.Units {
			if e.serves() {
				n += u.free()
			}
		}
	}
	return n
}

// Room says how many more addresses could be had by steps, beyond what is free now.
func Room(s Snapshot) int {
	if s.Frozen {
		return 0
	}
	if s.IPv6 {
		return s.roomIPv6()
	}
	n := 0
	if s.attachable() {
		n = max(0, s.slots()) * s.Places * s.size(s.NoPrefix)
	}
	for _, e := range s.ENIs {
		if e.serves() && !e.Full {
			n += max(0, s.Places-len(e.Units)) * s.size(e.NoPrefix)
		}
	}
	return n
}

func (s Snapshot) attachable() bool { return !s.NoENI && !s.Settled }

func (s Snapshot) slots() int {
	n := s.MaxENIs - s.Attached
	if s.KeepTrunkSlot {
		n--
	}
	return n
}

// size is how many addresses one more unit brings where prefixes can be had, or not.
func (s Snapshot) size(noPrefix bool) int {
	if noPrefix {
		return 1
	}
	return s.unit()
}

// Plan returns the steps that bring the node to its target, the most useful first. An empty plan means that the target
// is met, or can't be met on this instance.
//
// ENIs that are there are filled before another is attached: to the last place where the target is in ENIs, else by as
// many units as are missing. What nobody uses or used lately is given back as soon as the rest meets the target: whole
// ENIs, the highest device first, and where the target is not in ENIs, units. The primary ENI stays. As freed addresses
// cool down before they count as unused, and Held ones are kept for a while, pods that come and go move little.
func Plan(s Snapshot) []Step {
	if s.Frozen {
		return nil
	}
	if s.IPv6 {
		return s.planIPv6()
	}
	// Without a free interface the trunk could never come: an idle ENI gives way, below the target too.
	if s.KeepTrunkSlot && s.Attached >= s.MaxENIs {
		if id := s.retirable(s.steady() - s.inUse() - s.Waiting); id != "" {
			return []Step{{Kind: Retire, ENIID: id}}
		}
	}
	if missing := Missing(s); missing > 0 {
		return s.grow(missing)
	}
	return s.shrink(max(0, Surplus(s)-s.Held))
}

func (s Snapshot) grow(missing int) (steps []Step) {
	for _, e := range ordered(s.ENIs) {
		if places := s.Places - len(e.Units); places > 0 && missing > 0 && e.serves() && !e.Full {
			n := s.count(places, missing, e.NoPrefix)
			steps = append(steps, Step{Kind: Assign, ENIID: e.ID, Count: n, Prefixes: s.Prefixes && !e.NoPrefix})
			missing -= n * s.size(e.NoPrefix)
		}
	}
	if len(steps) == 0 {
		if steps = s.makePlaces(missing); len(steps) > 0 {
			return steps
		}
	}
	if len(steps) == 0 && s.attachable() && s.slots() <= 0 {
		// Nothing more can be had beside an ENI that gives nothing: it makes its slot free.
		if id := s.drained(); id != "" {
			return []Step{{Kind: Retire, ENIID: id}}
		}
	}
	for slots := s.slots(); missing > 0 && slots > 0 && s.Places > 0 && s.attachable(); slots-- {
		n := s.count(s.Places, missing, s.NoPrefix)
		steps = append(steps, Step{Kind: Attach, Count: n, Prefixes: s.Prefixes && !s.NoPrefix})
		missing -= n * s.size(s.NoPrefix)
	}
	return steps
}

// makePlaces gives idle units of the wrong kind back where no place is left for those of the right kind: only as many as
// are missing, as until the right ones are there it is these that pods get.
func (s Snapshot) makePlaces(missing int) []Step {
	for _, e := range ordered(s.ENIs) {
		if !e.serves() || e.Full {
			continue
		}
		if units := s.wrong(e); len(units) > 0 {
			return []Step{{Kind: Unassign, ENIID: e.ID, Units: units[:s.count(len(units), missing, e.NoPrefix)]}}
		}
	}
	return nil
}

// count is how many units to ask for at once.
func (s Snapshot) count(places, missing int, noPrefix bool) int {
	if s.whole() {
		return places
	}
	size := s.size(noPrefix)
	return min(places, (missing+size-1)/size)
}

func (s Snapshot) wrong(e ENI) []netip.Prefix {
	return e.givable(func(u Unit) bool { return !s.right(e, u) })
}

func (e ENI) idleUnits() []netip.Prefix { return e.givable(func(Unit) bool { return true }) }

func (e ENI) givable(which func(Unit) bool) (units []netip.Prefix) {
	for _, u := range e.Units {
		if u.idle() && !u.Leaving && which(u) {
			units = append(units, u.Prefix)
		}
	}
	return units
}

func (s Snapshot) shrink(surplus int) []Step {
	if id := s.drained(); id != "" {
		return []Step{{Kind: Retire, ENIID: id}}
	}
	if id := s.retirable(surplus); id != "" && !s.HeldENIs {
		return []Step{{Kind: Retire, ENIID: id}}
	}
	for _, e := range slices.Backward(ordered(s.ENIs)) {
		if e.Retiring || e.Draining && !e.Primary {
			continue
		}
		units := s.wrong(e)
		if e.Draining {
			units = e.idleUnits()
		}
		for _, u := range slices.Backward(e.Units) {
			if !e.Draining && !s.whole() && u.idle() && !u.Leaving && s.right(e, u) && u.Size() <= surplus {
				units = append(units, u.Prefix)
				surplus -= u.Size()
			}
		}
		if len(units) > 0 {
			return []Step{{Kind: Unassign, ENIID: e.ID, Units: units}}
		}
	}
	return nil
}

// retirable returns the ENI to give back where so many addresses are too many, the one with the highest device number
// first; one at a time, so that each decision sees what the last one led to.
func (s Snapshot) retirable(surplus int) string {
	return s.retirableWhere(func(e ENI) bool { return s.counting(e) <= surplus })
}

// counting is how many addresses of the ENI count for the target though nobody has them.
func (s Snapshot) counting(e ENI) (n int) {
	for _, u := range e.Units {
		if e.serves() && s.right(e, u) {
			n += u.free()
		}
	}
	return n
}

// drained returns an idle ENI that gives no addresses.
func (s Snapshot) drained() string {
	return s.retirableWhere(func(e ENI) bool { return e.Draining })
}

func (s Snapshot) retirableWhere(which func(ENI) bool) string {
	if s.Settled || slices.ContainsFunc(s.ENIs, func(e ENI) bool { return e.Retiring }) {
		return ""
	}
	for _, e := range slices.Backward(ordered(s.ENIs)) {
		if !e.Primary && !e.Foreign && e.idle() && which(e) {
			return e.ID
		}
	}
	return ""
}

// ordered puts the primary first and then goes by device number.
func ordered(enis []ENI) []ENI {
	return slices.SortedFunc(slices.Values(enis), func(a, b ENI) int { return cmp.Compare(a.Device, b.Device) })
}
