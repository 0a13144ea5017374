package pool

import (
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// played is a node with EC2 at hand, in virtual time.
type played struct {
	t              *rapid.T
	s              Snapshot
	now            time.Time
	coolDown, keep time.Duration
	patience       Patience
	next           time.Time              // when patience wants to look again; zero: not without another event
	until          map[string][]time.Time // unit: when its cooling addresses have cooled
	since          map[string]time.Time   // what could go: since when it could
}

// anyNode is one with any pods and any ENIs of the agent's own, as an agent that starts may find it. Units of the other kind, and ENIs
// that drain, or are somebody else's, are TestStepsAreSafeAndConverge's.
func anyNode(t *rapid.T, coolDown, keep time.Duration) *played {
	p := &played{
		t: t, now: time.Unix(1000, 0), patience: NewPatience(coolDown, keep), coolDown: coolDown, keep: keep,
		until: map[string][]time.Time{}, since: map[string]time.Time{},
	}
	p.s = Snapshot{Targets: Targets{
		WarmENIs: rapid.IntRange(0, 2).Draw(t, "warm"), WarmPrefixes: rapid.IntRange(-1, 2).Draw(t, "warmPrefixes"),
		WarmIPs: rapid.SampledFrom([]int{0, 1, 3, 7}).Draw(t, "warmIPs"), MinimumIPs: rapid.SampledFrom([]int{0, 0, 20}).Draw(t, "minimum"),
		MaxENIs: rapid.IntRange(1, 4).Draw(t, "most"), Places: rapid.IntRange(1, 9).Draw(t, "places"), Prefixes: rapid.Bool().Draw(t, "prefixes"),
	}}
	for i := range rapid.IntRange(1, p.s.MaxENIs).Draw(t, "enis") {
		e := ENI{ID: string(rune('a' + i)), Primary: i == 0, Device: i, Units: units(i, rapid.IntRange(0, p.s.Places).Draw(t, "units"), p.s.Prefixes)}
		for j := range e.Units {
			u := &e.Units[j]
			u.InUse = rapid.IntRange(0, u.Size()).Draw(t, "used")
			for range rapid.IntRange(0, u.Size()-u.InUse).Draw(t, "cooling") {
				p.cool(u)
			}
		}
		p.s.ENIs = append(p.s.ENIs, e)
	}
	p.s.Attached = len(p.s.ENIs)
	return p
}

func (p *played) cool(u *Unit) {
	k := u.Prefix.String()
	p.until[k] = append(p.until[k], p.now.Add(p.coolDown))
	u.Cooling = len(p.until[k])
}

func (p *played) each(f func(u *Unit)) {
	for i := range p.s.ENIs {
		p.s.ENIs[i].Units = slices.Clone(p.s.ENIs[i].Units)
		for j := range p.s.ENIs[i].Units {
			f(&p.s.ENIs[i].Units[j])
		}
	}
}

// pass lets time go by: the agent looks whenever an address has rested, and when it wanted to.
func (p *played) pass(d time.Duration) {
	for end := p.now.Add(d); ; {
		at := end
		for _, cooled := range p.until {
			for _, c := range cooled {
				if c.Before(at) {
					at = c
				}
			}
		}
		if !p.next.IsZero() && p.next.Before(at) {
			at = p.next
		}
		p.now = at
		p.each(func(u *Unit) {
			k := u.Prefix.String()
			p.until[k] = slices.DeleteFunc(p.until[k], func(c time.Time) bool { return !c.After(p.now) })
			u.Cooling = len(p.until[k])
		})
		p.look()
		if !p.now.Before(end) {
			return
		}
	}
}

// look is the agent's: one step after the other, each decided anew. Then it is looked whether something stays that should be gone.
func (p *played) look() {
	for n := 0; ; n++ {
		if n == 200 {
			p.t.Fatalf("does not come to rest: %+v", p.s)
		}
		next := p.patience.Hold(p.now, &p.s)
		p.next = time.Time{}
		if next > 0 {
			p.next = p.now.Add(next)
		}
		steps := Plan(p.s)
		if len(steps) == 0 {
			break
		}
		p.s = apply(p.t, p.s, steps[0])
	}
	long := max(p.coolDown, p.keep)
	p.bound("more than is kept", p.coolDown, Unassign, func(s *Snapshot) { s.Held, s.HeldENIs = min(Surplus(*s), s.slack()), true })
	p.bound("what is kept", long, Unassign, func(s *Snapshot) { s.Held, s.HeldENIs = 0, true })
	maps.DeleteFunc(p.since, func(what string, _ time.Time) bool { // a later ENI may be called the same
		id, isENI := strings.CutPrefix(what, "ENI ")
		return isENI && !slices.ContainsFunc(p.s.ENIs, func(e ENI) bool { return e.ID == id })
	})
	enis := long
	if p.s.whole() {
		enis = p.coolDown
	}
	for _, e := range p.s.ENIs {
		p.bound("ENI "+e.ID, enis, Retire, func(s *Snapshot) {
			s.Held, s.HeldENIs, s.ENIs = 0, false, slices.Clone(s.ENIs)
			for i := range s.ENIs {
				s.ENIs[i].Foreign = s.ENIs[i].ID != e.ID
			}
		})
	}
}

// bound fails where something could have gone for that long: at that very moment it had to.
func (p *played) bound(what string, most time.Duration, kind Kind, without func(*Snapshot)) {
	s := p.s
	without(&s)
	if steps := Plan(s); len(steps) == 0 || steps[0].Kind != kind {
		delete(p.since, what)
		return
	}
	since, known := p.since[what]
	if !known {
		p.since[what] = p.now
	} else if p.now.Sub(since) >= most {
		p.t.Fatalf("%s could go for %v, and may stay for %v: %+v", what, p.now.Sub(since), most, p.s)
	}
}

// event is something that happens on the node.
func (p *played) event() {
	switch rapid.IntRange(0, 2).Draw(p.t, "what") {
	case 0: // pods come
		p.s.Waiting = rapid.IntRange(1, 12).Draw(p.t, "pods")
		p.look()
		p.each(func(u *Unit) {
			n := min(p.s.Waiting, u.free())
			u.InUse, p.s.Waiting = u.InUse+n, p.s.Waiting-n
		})
		p.s.Waiting = 0 // those that the node has no room for go elsewhere
	case 1: // pods end
		ends := rapid.IntRange(1, 12).Draw(p.t, "pods")
		p.each(func(u *Unit) {
			for ; u.InUse > 0 && ends > 0; ends-- {
				u.InUse--
				p.cool(u)
			}
		})
	case 2: // all of them do
		p.each(func(u *Unit) {
			for ; u.InUse > 0; u.InUse-- {
				p.cool(u)
			}
		})
	}
	p.look()
}

// TestWhatIsAboveTheTargetGoesInTime holds the pool to what docs/configuration.md says, from any state and with any history:
// what EC2 can take back of what is above the warm targets stays for no longer than an address rests, but for the little that
// is kept for BRANCHLINE_KEEP_SURPLUS, and with 0 for nothing.
func TestWhatIsAboveTheTargetGoesInTime(t *testing.T) {
	for name, keep := range map[string]time.Duration{"nothing is kept": 0, "by default": 300 * time.Second, "less than an address rests": 10 * time.Second} {
		t.Run(name, func(t *testing.T) {
			rapid.Check(t, func(t *rapid.T) {
				const coolDown = 30 * time.Second
				p := anyNode(t, coolDown, keep)
				p.look()
				for range rapid.IntRange(1, 40).Draw(t, "events") {
					p.event()
					if missing := Missing(p.s); missing > 0 && Room(p.s) > 0 {
						t.Fatalf("%d too few, and there is room: %+v", missing, p.s)
					}
					p.pass(time.Duration(rapid.SampledFrom([]int{0, 1, 10, 29, 30, 31, 60, 299, 301}).Draw(t, "seconds")) * time.Second)
				}
				// After the last wave: its addresses rest, and then what is kept goes.
				p.pass(coolDown + max(coolDown, keep))
				s := p.s
				if s.Held, s.HeldENIs = 0, false; len(Plan(s)) > 0 {
					t.Fatalf("the last wave is %v ago, and there is yet to do: %+v: %+v", max(coolDown, keep), Plan(s), s)
				}
			})
		})
	}
}
