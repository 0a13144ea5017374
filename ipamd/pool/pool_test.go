package pool

import (
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// units are n single addresses, or prefixes, of the ENI with this device number.
func units(device, n int, prefixes bool) (all []Unit) {
	for i := range n {
		all = append(all, Unit{Prefix: unit(device, i, prefixes)})
	}
	return all
}

// unit is the n-th address or prefix of a device.
func unit(device, n int, prefix bool) netip.Prefix {
	if prefix {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(device), byte(n >> 4), byte(n << 4)}), 28)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{172, byte(device), byte(n >> 8), byte(n)}), 32)
}

// eni has n single addresses, the first used of them in use.
func eni(device, n, used int) ENI {
	e := ENI{ID: string(rune('a' + device)), Primary: device == 0, Device: device, Units: units(device, n, false)}
	for i := range used {
		e.Units[i].InUse = 1
	}
	return e
}

func cooling(e ENI, n int) ENI {
	for i := range n {
		e.Units[len(e.Units)-1-i].Cooling = 1
	}
	return e
}

// m5.large: 3 ENIs, 9 secondary addresses each.
func large(enis ...ENI) Snapshot {
	return Snapshot{Targets: Targets{WarmENIs: 1, WarmPrefixes: -1, MaxENIs: 3, Places: 9}, ENIs: enis, Attached: len(enis)}
}

func TestPlan(t *testing.T) {
	attach := func(n int) Step { return Step{Kind: Attach, Count: n} }
	onDemand := func(s *Snapshot) { s.OnDemand, s.WarmIPs, s.MinimumIPs = true, 5, 9 }
	prefixes := func(s *Snapshot) { s.Prefixes, s.WarmPrefixes = true, 1 }
	mixed := eni(0, 8, 1)
	mixed.Units = append(mixed.Units, Unit{Prefix: unit(0, 0, true), InUse: 3})
	for name, c := range map[string]struct {
		s    Snapshot
		with func(*Snapshot)
		want []Step
	}{
		"a new node fills its primary":          {s: large(eni(0, 0, 0)), want: []Step{{Kind: Assign, ENIID: "a", Count: 9}}},
		"a full warm ENI is enough":             {s: large(eni(0, 9, 0))},
		"the first pod brings the next ENI":     {s: large(eni(0, 9, 1)), want: []Step{attach(9)}},
		"the trunk's slot is kept":              {s: large(eni(0, 9, 9), eni(1, 9, 9)), with: func(s *Snapshot) { s.KeepTrunkSlot = true }},
		"and given where none is wanted":        {s: large(eni(0, 9, 9), eni(1, 9, 9)), want: []Step{attach(9)}},
		"cooling addresses are not free":        {s: large(cooling(eni(0, 9, 0), 1)), want: []Step{attach(9)}},
		"no warm target still keeps one":        {s: large(eni(0, 0, 0)), with: func(s *Snapshot) { s.WarmENIs = 0 }, want: []Step{{Kind: Assign, ENIID: "a", Count: 9}}},
		"waiting pods count":                    {s: large(eni(0, 9, 9)), with: func(s *Snapshot) { s.WarmENIs, s.Waiting = 0, 10 }, want: []Step{attach(9), attach(9)}},
		"over target: the last is retired":      {s: large(eni(0, 9, 0), eni(1, 9, 0), eni(2, 9, 0)), want: []Step{{Kind: Retire, ENIID: "c"}}},
		"just over target too":                  {s: large(eni(0, 9, 0), eni(1, 9, 0)), want: []Step{{Kind: Retire, ENIID: "b"}}},
		"one free of an ENI too few: nothing":   {s: large(eni(0, 9, 1), eni(1, 9, 0))},
		"never while one of it cools":           {s: large(eni(0, 9, 0), cooling(eni(1, 9, 0), 1))},
		"one at a time":                         {s: large(eni(0, 9, 0), eni(1, 9, 0), ENI{ID: "c", Device: 2, Retiring: true})},
		"one is given up for the trunk":         {s: large(eni(0, 9, 5), eni(1, 9, 1), eni(2, 9, 0)), with: func(s *Snapshot) { s.KeepTrunkSlot = true }, want: []Step{{Kind: Retire, ENIID: "c"}}},
		"but not from under pods that wait":     {s: large(eni(0, 9, 9), eni(1, 9, 9), eni(2, 9, 0)), with: func(s *Snapshot) { s.KeepTrunkSlot, s.Waiting = true, 1 }},
		"never one that cools, for the trunk":   {s: large(eni(0, 9, 9), eni(1, 9, 1), cooling(eni(2, 9, 0), 1)), with: func(s *Snapshot) { s.KeepTrunkSlot = true }},
		"an instance that is full stays quiet":  {s: large(eni(0, 9, 9), eni(1, 9, 9), eni(2, 9, 9))},
		"interfaces not ours take slots as any": {s: large(eni(0, 9, 9)), with: func(s *Snapshot) { s.Attached = 3 }},
		"where no ENI can be had, none":         {s: large(eni(0, 9, 9)), with: func(s *Snapshot) { s.NoENI = true }},
		"a cordoned node keeps its ENIs":        {s: large(eni(0, 9, 0), eni(1, 9, 0)), with: func(s *Snapshot) { s.Settled = true }},
		"and gets no other":                     {s: large(eni(0, 9, 9)), with: func(s *Snapshot) { s.Settled, s.Waiting = true, 3 }},
		"but addresses on those that it has":    {s: large(eni(0, 3, 3)), with: func(s *Snapshot) { s.Settled = true }, want: []Step{{Kind: Assign, ENIID: "a", Count: 6}}},
		"where others provide, nothing is done": {s: large(eni(0, 0, 0)), with: func(s *Snapshot) { s.Frozen, s.Waiting = true, 3 }},
		"somebody else's ENI stays":             {s: large(eni(0, 9, 0), eni(1, 9, 0)), with: func(s *Snapshot) { s.ENIs[1].Foreign = true }},
		"a primary that serves nobody gets no address": {s: large(eni(0, 0, 0)), with: func(s *Snapshot) { s.ENIs[0].Draining = true },
			want: []Step{attach(9)}},
		"and gives its own back once others are there": {s: large(eni(0, 2, 1), eni(1, 9, 0)), with: func(s *Snapshot) { s.ENIs[0].Draining = true },
			want: []Step{{Kind: Unassign, ENIID: "a", Units: []netip.Prefix{unit(0, 1, false)}}}},
		"an ENI that serves nobody goes first":      {s: large(eni(0, 9, 0), eni(1, 9, 0)), with: func(s *Snapshot) { s.ENIs[1].Draining = true }, want: []Step{{Kind: Retire, ENIID: "b"}}},
		"and not from under its pods":               {s: large(eni(0, 9, 0), eni(1, 9, 1)), with: func(s *Snapshot) { s.ENIs[1].Draining = true }},
		"it makes room where there is no slot left": {s: large(eni(0, 9, 9), eni(1, 9, 0), eni(2, 9, 9)), with: func(s *Snapshot) { s.ENIs[1].Draining = true }, want: []Step{{Kind: Retire, ENIID: "b"}}},
		"a full subnet is left alone": {s: large(eni(0, 3, 3), eni(1, 3, 3)), with: func(s *Snapshot) { s.ENIs[0].Full = true },
			want: []Step{{Kind: Assign, ENIID: "b", Count: 6}, attach(9)}},

		"addresses one by one, for all who wait at once": {s: large(eni(0, 2, 2)), with: func(s *Snapshot) { s.WarmIPs, s.Waiting = 1, 5 }, want: []Step{{Kind: Assign, ENIID: "a", Count: 6}}},
		"too many by two":                            {s: large(eni(0, 9, 1), eni(1, 5, 2)), with: func(s *Snapshot) { s.WarmIPs = 9 }, want: []Step{{Kind: Unassign, ENIID: "b", Units: []netip.Prefix{unit(1, 4, false), unit(1, 3, false)}}}},
		"a floor holds what nobody uses":             {s: large(eni(0, 9, 0)), with: func(s *Snapshot) { s.WarmIPs, s.MinimumIPs = 1, 9 }},
		"a second pod, a second prefix":              {s: large(ENI{ID: "a", Primary: true, Units: []Unit{{Prefix: unit(0, 0, true), InUse: 1}}}), with: prefixes, want: []Step{{Kind: Assign, ENIID: "a", Count: 1, Prefixes: true}}},
		"prefixes switched on: places are made":      {s: large(eni(0, 9, 2)), with: prefixes, want: []Step{{Kind: Unassign, ENIID: "a", Units: []netip.Prefix{unit(0, 2, false)}}}},
		"and the rest goes when they are there":      {s: large(mixed), with: func(s *Snapshot) { prefixes(s); s.WarmPrefixes = 0 }, want: []Step{{Kind: Unassign, ENIID: "a", Units: prefixesOf(mixed.Units[1:8])}}},
		"no prefix left: single addresses serve":     {s: large(eni(0, 2, 2)), with: func(s *Snapshot) { prefixes(s); s.ENIs[0].NoPrefix = true }, want: []Step{{Kind: Assign, ENIID: "a", Count: 7}, {Kind: Attach, Count: 1, Prefixes: true}}},
		"prefixes switched off: idle ones go":        {s: large(ENI{ID: "a", Primary: true, Units: append(units(0, 8, false), Unit{Prefix: unit(0, 0, true)})}), with: func(s *Snapshot) { s.WarmENIs = 0 }, want: []Step{{Kind: Unassign, ENIID: "a", Units: []netip.Prefix{unit(0, 0, true)}}}},
		"prefixes switched off: used ones remain":    {s: large(ENI{ID: "a", Primary: true, Units: append(units(0, 8, false), Unit{Prefix: unit(0, 0, true), InUse: 1})}), with: func(s *Snapshot) { s.WarmENIs = 0 }},
		"on demand nothing is kept ahead":            {s: large(), with: onDemand},
		"one who waits brings an ENI, for him alone": {s: large(), with: func(s *Snapshot) { onDemand(s); s.Waiting = 1 }, want: []Step{attach(1)}},
		"all who wait are one call":                  {s: large(), with: func(s *Snapshot) { onDemand(s); s.Waiting = 7 }, want: []Step{attach(7)}},
		"an ENI that is there is filled first":       {s: large(eni(1, 2, 2)), with: func(s *Snapshot) { onDemand(s); s.Waiting = 3 }, want: []Step{{Kind: Assign, ENIID: "b", Count: 3}}},
		"what is free is enough":                     {s: large(eni(1, 3, 2)), with: func(s *Snapshot) { onDemand(s); s.Waiting = 1 }},
		"what rests is not":                          {s: large(cooling(eni(1, 3, 2), 1)), with: func(s *Snapshot) { onDemand(s); s.Waiting = 1 }, want: []Step{{Kind: Assign, ENIID: "b", Count: 1}}},
		"what nobody has goes, one by one":           {s: large(eni(1, 3, 2)), with: onDemand, want: []Step{{Kind: Unassign, ENIID: "b", Units: []netip.Prefix{unit(1, 2, false)}}}},
		"and the ENI, once it is idle":               {s: large(eni(1, 0, 0)), with: onDemand, want: []Step{{Kind: Retire, ENIID: "b"}}},
		"with prefixes, too":                         {s: large(), with: func(s *Snapshot) { onDemand(s); prefixes(s); s.Waiting = 17 }, want: []Step{{Kind: Attach, Count: 2, Prefixes: true}}},
	} {
		if c.with != nil {
			c.with(&c.s)
		}
		if got := Plan(c.s); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func prefixesOf(us []Unit) (out []netip.Prefix) {
	for _, u := range us {
		out = append(out, u.Prefix)
	}
	return out
}

// settle applies plans until there is nothing to do, as EC2 would.
func settle(t interface{ Fatalf(string, ...any) }, s Snapshot) Snapshot {
	for range 200 {
		steps := Plan(s)
		if len(steps) == 0 {
			return s
		}
		s = apply(t, s, steps[0])
	}
	t.Fatalf("does not come to rest: %+v", s)
	return s
}

// apply is one step, done by an EC2 that refuses what the real one does, and looks that nothing in use goes.
func apply(t interface{ Fatalf(string, ...any) }, s Snapshot, step Step) Snapshot {
	fail := func(why string) { t.Fatalf("%+v %s: %+v", step, why, s) }
	if s.Frozen || s.Settled && (step.Kind == Attach || step.Kind == Retire) {
		fail("is not to be done on this node")
	}
	next := s
	next.ENIs = nil
	for _, e := range s.ENIs {
		if e.ID != step.ENIID {
			next.ENIs = append(next.ENIs, e)
			continue
		}
		switch step.Kind {
		case Assign:
			if step.Count < 1 || len(e.Units)+step.Count > s.Places {
				fail("is not what the ENI can have")
			}
			if e.Full || e.Retiring || e.Draining || step.Prefixes && e.NoPrefix {
				fail("asks for what is not there")
			}
			e.Units = slices.Clone(e.Units)
			for n := 0; step.Count > 0; n++ {
				p := unit(e.Device, n, step.Prefixes)
				if !slices.ContainsFunc(e.Units, func(u Unit) bool { return u.Prefix == p }) {
					e.Units = append(e.Units, Unit{Prefix: p})
					step.Count--
				}
			}
			next.ENIs = append(next.ENIs, e)
		case Unassign:
			for _, p := range step.Units {
				i := slices.IndexFunc(e.Units, func(u Unit) bool { return u.Prefix == p })
				if i < 0 || e.Units[i].InUse+e.Units[i].Cooling > 0 || e.Units[i].Leaving || e.Retiring {
					fail("gives back what is not free")
				}
				e.Units = slices.Delete(slices.Clone(e.Units), i, i+1)
			}
			next.ENIs = append(next.ENIs, e)
		case Retire:
			for _, u := range e.Units {
				if u.InUse+u.Cooling > 0 || e.Primary || e.Foreign {
					fail("takes an ENI that is in use")
				}
			}
			next.Attached--
		}
	}
	if step.Kind == Attach {
		if next.Attached++; next.Attached > s.MaxENIs || s.KeepTrunkSlot && next.Attached == s.MaxENIs || s.NoENI {
			fail("takes a slot that is not there")
		}
		if step.Count < 1 || step.Count > s.Places || step.Prefixes && s.NoPrefix {
			fail("asks for what an ENI can't have")
		}
		device := 0
		for slices.ContainsFunc(s.ENIs, func(e ENI) bool { return e.Device == device }) {
			device++
		}
		next.ENIs = append(next.ENIs, ENI{ID: fmt.Sprintf("new-%d", device), Device: device, Units: units(device, step.Count, step.Prefixes), NoPrefix: s.NoPrefix})
	}
	return next
}

func snapshots() *rapid.Generator[Snapshot] {
	return rapid.Custom(func(t *rapid.T) Snapshot {
		s := Snapshot{
			Targets: Targets{
				MaxENIs: rapid.IntRange(1, 8).Draw(t, "max"), Places: rapid.IntRange(1, 15).Draw(t, "places"), WarmENIs: rapid.IntRange(0, 3).Draw(t, "warm"),
				WarmPrefixes: rapid.IntRange(-1, 3).Draw(t, "warmPrefixes"), WarmIPs: rapid.SampledFrom([]int{0, 0, 1, 5, 20}).Draw(t, "warmIPs"),
				MinimumIPs: rapid.SampledFrom([]int{0, 0, 3, 20}).Draw(t, "minimum"), Prefixes: rapid.Bool().Draw(t, "prefixes"),
				OnDemand: rapid.IntRange(0, 2).Draw(t, "on demand") == 0,
			},
			KeepTrunkSlot: rapid.Bool().Draw(t, "trunk"), Waiting: rapid.IntRange(0, 20).Draw(t, "waiting"),
			NoENI: rapid.IntRange(0, 4).Draw(t, "noENI") == 0, NoPrefix: rapid.IntRange(0, 4).Draw(t, "noPrefix") == 0,
		}
		n := rapid.IntRange(1, s.MaxENIs).Draw(t, "enis")
		for i := range n {
			e := ENI{ID: string(rune('a' + i)), Primary: i == 0 && !s.OnDemand, Device: i}
			e.Full, e.NoPrefix = rapid.IntRange(0, 5).Draw(t, "full") == 0, s.NoPrefix || rapid.IntRange(0, 5).Draw(t, "noPrefixHere") == 0
			e.Retiring = i > 0 && rapid.IntRange(0, 5).Draw(t, "retiring") == 0
			e.Draining, e.Foreign = rapid.IntRange(0, 4).Draw(t, "draining") == 0, i > 0 && rapid.IntRange(0, 4).Draw(t, "foreign") == 0
			for j := range rapid.IntRange(0, s.Places).Draw(t, "units") {
				u := Unit{Prefix: unit(i, j, rapid.IntRange(0, 3).Draw(t, "other") == 0 != s.Prefixes)}
				if !e.Retiring {
					u.InUse = rapid.IntRange(0, u.Size()).Draw(t, "used")
					u.Cooling = rapid.IntRange(0, u.Size()-u.InUse).Draw(t, "cooling")
					u.Leaving = u.InUse+u.Cooling == 0 && rapid.IntRange(0, 3).Draw(t, "leaving") == 0
				}
				e.Units = append(e.Units, u)
			}
			s.ENIs = append(s.ENIs, e)
		}
		s.Attached = n + rapid.IntRange(0, s.MaxENIs-n).Draw(t, "others")
		s.Settled, s.Frozen = rapid.IntRange(0, 4).Draw(t, "settled") == 0, rapid.IntRange(0, 9).Draw(t, "frozen") == 0
		return s
	})
}

func TestStepsAreSafeAndConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := settle(t, snapshots().Draw(t, "snapshot"))
		free, used, counted, idleENI, wrong, drained, drainedENI := 0, 0, 0, 0, 0, 0, 0
		for _, e := range s.ENIs {
			idle := 0
			for _, u := range e.Units {
				used += u.InUse
				right := u.IsPrefix() == s.Prefixes || e.NoPrefix && !u.IsPrefix()
				if e.Retiring || u.Leaving {
					continue
				}
				if e.Draining {
					if e.Primary && u.InUse+u.Cooling == 0 {
						drained++
					}
					continue
				}
				free += u.Size() - u.InUse - u.Cooling
				if right {
					counted += u.Size() - u.InUse - u.Cooling
				}
				if u.InUse+u.Cooling == 0 {
					idle++
					if !right {
						wrong++
					}
				}
			}
			idle += len(slices.DeleteFunc(slices.Clone(e.Units), func(u Unit) bool { return !u.Leaving }))
			if e.Retiring { // while one goes, no other does
				idleENI -= 100
			}
			if e.Draining {
				idle = 0
				for _, u := range e.Units {
					idle += u.InUse + u.Cooling
				}
				if !e.Primary && !e.Foreign && idle == 0 {
					drainedENI++
				}
			} else if !e.Primary && !e.Foreign && idle == len(e.Units) {
				idleENI++
			}
		}
		if s.Frozen {
			return
		}
		if free != Free(s) {
			t.Fatalf("Free is %d, %d are: %+v", Free(s), free, s)
		}
		over := counted + used - Target(s)
		switch {
		case over < 0 && Room(s) > 0:
			t.Fatalf("%d too few, and there is room for %d: %+v", -over, Room(s), s)
		case over >= 0 && wrong > 0:
			t.Fatalf("%d units of the wrong kind remain: %+v", wrong, s)
		case over >= 0 && drained > 0:
			t.Fatalf("%d idle units of a primary that serves nobody remain: %+v", drained, s)
		case over >= 0 && drainedENI > 0 && idleENI >= 0 && !s.Settled:
			t.Fatalf("%d ENIs that serve nobody remain: %+v", drainedENI, s)
		case over >= s.Places*PrefixSize && idleENI > 0 && !s.Settled:
			t.Fatalf("%d too many, with an ENI that nobody uses: %+v", over, s)
		}
	})
}

// TestNeverBelowTheTargetAndAboveOnlyWhileAddressesCool plays days of pods that come and go on a node with EC2 at hand.
func TestNeverBelowTheTargetAndAboveOnlyWhileAddressesCool(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const coolDown = 30
		s := Snapshot{Targets: Targets{
			WarmENIs: rapid.IntRange(0, 2).Draw(t, "warm"), WarmPrefixes: rapid.IntRange(-1, 2).Draw(t, "warmPrefixes"),
			WarmIPs: rapid.SampledFrom([]int{0, 1, 7}).Draw(t, "warmIPs"), MinimumIPs: rapid.SampledFrom([]int{0, 20}).Draw(t, "minimum"),
			MaxENIs: 8, Places: 9, Prefixes: rapid.Bool().Draw(t, "prefixes"), OnDemand: rapid.IntRange(0, 2).Draw(t, "on demand") == 0,
		}, ENIs: []ENI{{ID: "a", Primary: true}}, Attached: 1}
		if s.OnDemand { // a further network card has no primary ENI
			s.ENIs, s.Attached = nil, 0
		}
		until := map[string][]int{} // unit: when its cooling addresses have cooled
		now := 0
		each := func(f func(u *Unit)) {
			for i := range s.ENIs {
				s.ENIs[i].Units = slices.Clone(s.ENIs[i].Units)
				for j := range s.ENIs[i].Units {
					f(&s.ENIs[i].Units[j])
				}
			}
		}
		cool := func() {
			each(func(u *Unit) {
				k := u.Prefix.String()
				until[k] = slices.DeleteFunc(until[k], func(at int) bool { return at <= now })
				u.Cooling = len(until[k])
			})
		}
		s = settle(t, s)
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			now += rapid.IntRange(0, 40).Draw(t, "pause")
			cool()
			switch rapid.IntRange(0, 2).Draw(t, "what") {
			case 0: // a burst of pods
				s.Waiting = rapid.IntRange(1, 12).Draw(t, "pods")
				s = settle(t, s)
				if Free(s) < s.Waiting && Room(s) > 0 {
					t.Fatalf("%d pods wait for %d addresses: %+v", s.Waiting, Free(s), s)
				}
				each(func(u *Unit) {
					n := min(s.Waiting, u.Size()-u.InUse-u.Cooling)
					u.InUse += n
					s.Waiting -= n
				})
			case 1: // some pods end
				each(func(u *Unit) {
					if n := rapid.IntRange(0, u.InUse).Draw(t, "end"); n > 0 {
						u.InUse -= n
						for range n {
							until[u.Prefix.String()] = append(until[u.Prefix.String()], now+coolDown)
						}
					}
				})
				cool()
			}
			s = settle(t, s)
			if missing := Target(s) - s.inUse() - Free(s); missing > 0 && Room(s) > 0 {
				t.Fatalf("%d below target: %+v", missing, s)
			}
		}
		now += coolDown
		cool()
		s = settle(t, s)
		byENI := !s.byAddress() && !(s.Prefixes && s.WarmPrefixes >= 0)
		over := s.inUse() + Free(s) - Target(s)
		for _, e := range s.ENIs {
			size := 0
			for _, u := range e.Units {
				size += u.Size()
				if !byENI && over >= u.Size() && u.InUse == 0 {
					t.Fatalf("%d above target and %s is idle: %+v", over, u.Prefix, s)
				}
			}
			if over >= size && !e.Primary && e.inUse() == 0 {
				t.Fatalf("%d above target and %s is idle: %+v", over, e.ID, s)
			}
		}
	})
}
