package pool

import (
	"testing"
	"time"

	"pgregory.net/rapid"
)

// node is a snapshot of one ENI with so many addresses, of which so many are in use and so many rest.
func node(t Targets, addresses, inUse, cooling int) Snapshot {
	e := ENI{ID: "a", Primary: true}
	for i := range addresses {
		u := Unit{Prefix: unit(0, i, false)}
		switch {
		case i < inUse:
			u.InUse = 1
		case i < inUse+cooling:
			u.Cooling = 1
		}
		e.Units = append(e.Units, u)
	}
	return Snapshot{Targets: t, ENIs: []ENI{e}, Attached: 1}
}

// TestWhatWasWantedLatelyIsHeld compares with all that was noted: of the surplus, what it was at the least over the short time
// may go, and what is left is kept for the long time as far as it is slack.
func TestWhatWasWantedLatelyIsHeld(t *testing.T) {
	targets := Targets{WarmIPs: 3, MaxENIs: 1, Places: 50}
	rapid.Check(t, func(t *rapid.T) {
		p := Patience{Short: 30 * time.Second, Long: 300 * time.Second}
		now := time.Unix(1000, 0)
		type note struct {
			from    time.Time
			surplus int
		}
		notes := []note{{surplus: 0}} // since ever
		least := func(over time.Duration) int {
			n := notes[len(notes)-1].surplus
			for i, o := range notes[:len(notes)-1] {
				if notes[i+1].from.After(now.Add(-over)) {
					n = min(n, o.surplus)
				}
			}
			return n
		}
		for range rapid.IntRange(1, 40).Draw(t, "notes") {
			now = now.Add(time.Duration(rapid.IntRange(0, 200).Draw(t, "seconds")) * time.Second)
			s := node(targets, rapid.IntRange(4, 30).Draw(t, "addresses"), 1, 0)
			surplus := Surplus(s)
			notes = append(notes, note{now, surplus})
			next := p.Hold(now, &s)
			want := func() int { return max(surplus-least(30*time.Second), min(surplus-least(300*time.Second), 6)) }
			if s.Held != want() {
				t.Fatalf("held %d of %d, want %d: %v", s.Held, surplus, want(), notes)
			}
			// Nobody has to look again before that, and who does then sees all that may have changed.
			held, at := s.Held, now
			for ; next == 0 && now.Sub(at) < 10*time.Minute || now.Sub(at) < next; now = now.Add(time.Second) {
				if want() != held {
					t.Fatalf("held %d after %v, and %d at first: the next look is said to be in %v: %v", want(), now.Sub(at), held, next, notes)
				}
			}
			now = at
		}
	})
}

// TestABurstsAddressesGoSoonAndTheLastOfThemLater: never far above the target for longer than addresses rest, and never above
// it for longer than ten times that.
func TestABurstsAddressesGoSoonAndTheLastOfThemLater(t *testing.T) {
	targets := Targets{WarmIPs: 5, MaxENIs: 1, Places: 50}
	p := Patience{Short: 30 * time.Second, Long: 300 * time.Second}
	now := time.Unix(1000, 0)
	has := 45
	look := func() (next time.Duration) {
		for range 3 {
			s := node(targets, has, 0, 0)
			next = p.Hold(now, &s)
			for _, step := range Plan(s) {
				if step.Kind != Unassign {
					t.Fatalf("%+v", step)
				}
				has -= len(step.Units)
			}
		}
		return next
	}
	busy := node(targets, has, 40, 0)
	p.Hold(now, &busy)
	for _, want := range []struct {
		after time.Duration
		has   int
	}{{0, 45}, {30 * time.Second, 15}, {270 * time.Second, 5}} {
		now = now.Add(want.after)
		if next := look(); has != want.has || (next == 0) != (has == 5) {
			t.Errorf("%v after the last pod's address has rested: %d addresses, want %d; the next look is in %v", now.Sub(time.Unix(1000, 0)), has, want.has, next)
		}
	}
}

// TestPodsThatComeAndGoMoveNothing: once it has what a small wave needs, the node asks EC2 for nothing.
func TestPodsThatComeAndGoMoveNothing(t *testing.T) {
	targets := Targets{WarmIPs: 5, MaxENIs: 1, Places: 50}
	p := Patience{Short: 30 * time.Second, Long: 300 * time.Second}
	now := time.Unix(1000, 0)
	for minute := range 20 {
		for _, wave := range []struct{ inUse, cooling int }{{10, 0}, {0, 10}, {0, 0}} {
			s := node(targets, 15, wave.inUse, wave.cooling)
			p.Hold(now, &s)
			if steps := Plan(s); minute > 0 && len(steps) > 0 {
				t.Fatalf("minute %d, %+v: %+v", minute, wave, steps)
			}
			now = now.Add(25 * time.Second)
		}
	}
}

// TestAnENIGoesOnlyAfterAWhile: to have it again takes many calls.
func TestAnENIGoesOnlyAfterAWhile(t *testing.T) {
	s := node(Targets{WarmENIs: 1, MaxENIs: 4, Places: 3, WarmPrefixes: -1}, 3, 0, 0)
	for _, id := range []string{"b", "c"} {
		e := ENI{ID: id, Device: len(s.ENIs)}
		for i := range 3 {
			e.Units = append(e.Units, Unit{Prefix: unit(len(s.ENIs), i, false)})
		}
		s.ENIs = append(s.ENIs, e)
	}
	s.Attached = 3
	p := Patience{Short: 30 * time.Second, Long: 300 * time.Second}
	now := time.Unix(1000, 0)
	for _, want := range []struct {
		after time.Duration
		steps int
	}{{0, 0}, {20 * time.Second, 0}, {10 * time.Second, 1}} {
		now = now.Add(want.after)
		p.Hold(now, &s)
		if steps := Plan(s); len(steps) != want.steps || want.steps == 1 && (steps[0].Kind != Retire || steps[0].ENIID != "c") {
			t.Errorf("after %v: %+v", now.Sub(time.Unix(1000, 0)), steps)
		}
	}
	s.ENIs[2].Draining = true // one that serves nobody is kept for nobody
	s.HeldENIs = true
	if steps := Plan(s); len(steps) != 1 || steps[0].ENIID != "c" {
		t.Errorf("draining: %+v", steps)
	}
}

// TestRestingAddressesCountForTheMinimumAndForNothingElse: MINIMUM_IP_TARGET is a floor of what the node has.
func TestRestingAddressesCountForTheMinimumAndForNothingElse(t *testing.T) {
	for _, c := range []struct {
		t                         Targets
		addresses, inUse, cooling int
		missing, surplus          int
	}{
		{Targets{WarmIPs: 2, MinimumIPs: 30}, 30, 5, 20, 0, 0},
		{Targets{WarmIPs: 2, MinimumIPs: 30}, 29, 5, 20, 1, 0},
		{Targets{WarmIPs: 2, MinimumIPs: 30}, 30, 5, 25, 2, 0}, // none is free: two are to be
		{Targets{WarmIPs: 2, MinimumIPs: 10}, 30, 5, 20, 0, 3},
		{Targets{WarmIPs: 5}, 30, 5, 20, 0, 0},
		{Targets{WarmIPs: 5}, 30, 5, 21, 1, 0},
	} {
		c.t.Places, c.t.MaxENIs = 50, 1
		s := node(c.t, c.addresses, c.inUse, c.cooling)
		if Missing(s) != c.missing || Surplus(s) != c.surplus {
			t.Errorf("%+v: %d missing and %d too many", c, Missing(s), Surplus(s))
		}
	}
}
