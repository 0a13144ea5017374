package pool

import "time"

// Patience keeps what is given back from being asked for again a moment later. It remembers how many addresses were too
// many at the least, over two times: over Short, as after a burst nearly everything is to go soon, and over Long, for which
// as much again as WARM_PREFIX_TARGET, or twice as much as WARM_IP_TARGET, is kept: pods that come and go make small waves.
//
// It is the one thing that the decision needs of the past, and no part of it: see Snapshot.Held.
type Patience struct {
	Short, Long time.Duration

	short, long lows
	enis        lows // 1 where an ENI could go, else 0: to have one again takes many calls
}

// NewPatience is that of an agent with IP_COOLDOWN_PERIOD and BRANCHLINE_KEEP_SURPLUS. A surplus that is kept for no longer than
// an address rests is none beside that: then what could go has gone once it was too much for that long, however much it is.
func NewPatience(coolDown, keepSurplus time.Duration) Patience {
	return Patience{Short: coolDown, Long: max(coolDown, keepSurplus)}
}

// Hold notes what is too much now, sets what of it is to be kept yet, and returns how long until that may fall without
// another event; 0 where it can't.
func (p *Patience) Hold(now time.Time, s *Snapshot) (next time.Duration) {
	surplus, idle, eni := Surplus(*s), 0, p.Long
	if s.retirable(surplus) != "" {
		idle = 1
	}
	if s.whole() {
		eni = p.Short // as its addresses go with it
	}
	all, some := p.short.note(now, surplus, p.Short), p.long.note(now, surplus, p.Long)
	s.Held = max(surplus-all, min(surplus-some, s.slack()))
	s.HeldENIs = p.enis.note(now, idle, eni) < idle
	for _, l := range []lows{p.short, p.long, p.enis} {
		if d := l.next(now); d > 0 && (next == 0 || d < next) {
			next = d
		}
	}
	return next
}

// slack is how many addresses above the target may be kept for longer.
func (t Targets) slack() int {
	switch {
	case t.OnDemand:
		return 0
	case t.byAddress():
		return 2 * t.WarmIPs // a wave of ten pods a minute is often as high
	case !t.whole():
		return t.WarmPrefixes * PrefixSize
	}
	return 0 // an ENI is so much at once that it is rarely wanted again soon
}

// lows are the surpluses of some time that may still be the least, the smallest first; each but the last ended at a moment,
// and counts until another.
type lows []low

type low struct {
	surplus int
	until   time.Time
}

// note adds the surplus of this moment, and returns the least one of the time before.
func (l *lows) note(now time.Time, surplus int, over time.Duration) int {
	if len(*l) == 0 {
		*l = lows{{}} // before the first note nothing was too many
	}
	(*l)[len(*l)-1].until = now.Add(over)
	for n := len(*l); n > 0 && (*l)[n-1].surplus >= surplus; n-- {
		*l = (*l)[:n-1]
	}
	for len(*l) > 0 && !now.Before((*l)[0].until) {
		*l = (*l)[1:]
	}
	*l = append(*l, low{surplus: surplus})
	return (*l)[0].surplus
}

// next is how long until the least surplus may grow by itself.
func (l lows) next(now time.Time) time.Duration {
	if len(l) < 2 {
		return 0
	}
	return l[0].until.Sub(now)
}
