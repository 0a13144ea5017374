package pool

import (
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// m5.large: 3 ENIs, 9 secondary addresses each.
func large(enis ...ENI) Snapshot {
	return Snapshot{ENIs: enis, Attached: len(enis), MaxENIs: 3, PerENI: 9, WarmENIs: 1}
}

func TestPlan(t *testing.T) {
	primary := func(n, used int) ENI { return ENI{ID: "a", Primary: true, Addresses: n, InUse: used} }
	for name, c := range map[string]struct {
		s    Snapshot
		with func(*Snapshot)
		want []Step
	}{
		"a new node fills its primary":          {s: large(primary(0, 0)), want: []Step{{Assign, "a", 9}}},
		"a full warm ENI is enough":             {s: large(primary(9, 0))},
		"the first pod brings the next ENI":     {s: large(primary(9, 1)), want: []Step{{Kind: Attach, Count: 9}}},
		"the trunk's slot is kept":              {s: large(primary(9, 9), ENI{ID: "b", Device: 1, Addresses: 9, InUse: 9}), with: func(s *Snapshot) { s.KeepTrunkSlot = true }},
		"and given where none is wanted":        {s: large(primary(9, 9), ENI{ID: "b", Device: 1, Addresses: 9, InUse: 9}), want: []Step{{Kind: Attach, Count: 9}}},
		"cooling addresses are not free":        {s: large(ENI{ID: "a", Primary: true, Addresses: 9, Cooling: 1}), want: []Step{{Kind: Attach, Count: 9}}},
		"no warm target still keeps one":        {s: large(primary(0, 0)), with: func(s *Snapshot) { s.WarmENIs = 0 }, want: []Step{{Assign, "a", 9}}},
		"waiting pods count":                    {s: large(primary(9, 9)), with: func(s *Snapshot) { s.WarmENIs, s.Waiting = 0, 10 }, want: []Step{{Kind: Attach, Count: 9}, {Kind: Attach, Count: 9}}},
		"far over target: the last is retired":  {s: large(primary(9, 0), ENI{ID: "b", Device: 1, Addresses: 9}, ENI{ID: "c", Device: 2, Addresses: 9}), want: []Step{{Kind: Retire, ENIID: "c"}}},
		"a little over target: nothing":         {s: large(primary(9, 0), ENI{ID: "b", Device: 1, Addresses: 9})},
		"one is given up for the trunk":         {s: large(primary(9, 5), ENI{ID: "b", Device: 1, Addresses: 9, InUse: 1}, ENI{ID: "c", Device: 2, Addresses: 9}), with: func(s *Snapshot) { s.KeepTrunkSlot = true }, want: []Step{{Kind: Retire, ENIID: "c"}}},
		"never one that cools, for the trunk":   {s: large(primary(9, 9), ENI{ID: "b", Device: 1, Addresses: 9, InUse: 1}, ENI{ID: "c", Device: 2, Addresses: 9, Cooling: 1}), with: func(s *Snapshot) { s.KeepTrunkSlot = true }},
		"an instance that is full stays quiet":  {s: large(primary(9, 9), ENI{ID: "b", Device: 1, Addresses: 9, InUse: 9}, ENI{ID: "c", Device: 2, Addresses: 9, InUse: 9})},
		"interfaces not ours take slots as any": {s: large(primary(9, 9)), with: func(s *Snapshot) { s.Attached = 3 }},
	} {
		if c.with != nil {
			c.with(&c.s)
		}
		if got := Plan(c.s); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: got %v, want %v", name, got, c.want)
		}
	}
}

func snapshots() *rapid.Generator[Snapshot] {
	return rapid.Custom(func(t *rapid.T) Snapshot {
		s := Snapshot{
			MaxENIs: rapid.IntRange(1, 8).Draw(t, "max"), PerENI: rapid.IntRange(1, 15).Draw(t, "per"), WarmENIs: rapid.IntRange(0, 3).Draw(t, "warm"),
			KeepTrunkSlot: rapid.Bool().Draw(t, "trunk"), Waiting: rapid.IntRange(0, 20).Draw(t, "waiting"),
		}
		n := rapid.IntRange(1, s.MaxENIs).Draw(t, "enis")
		for i := range n {
			e := ENI{ID: string(rune('a' + i)), Primary: i == 0, Device: i, Addresses: rapid.IntRange(0, s.PerENI).Draw(t, "addresses")}
			e.InUse = rapid.IntRange(0, e.Addresses).Draw(t, "used")
			e.Cooling = rapid.IntRange(0, e.Addresses-e.InUse).Draw(t, "cooling")
			s.ENIs = append(s.ENIs, e)
		}
		s.Attached = n + rapid.IntRange(0, s.MaxENIs-n).Draw(t, "foreign")
		return s
	})
}

func apply(s Snapshot, step Step) Snapshot {
	enis := append([]ENI(nil), s.ENIs...)
	for i := range enis {
		if step.Kind == Assign && enis[i].ID == step.ENIID {
			enis[i].Addresses += step.Count
		}
	}
	switch step.Kind {
	case Attach:
		enis = append(enis, ENI{ID: string(rune('A' + len(enis))), Device: 20 + len(enis), Addresses: step.Count})
		s.Attached++
	case Retire:
		enis = enis[:0]
		for _, e := range s.ENIs {
			if e.ID != step.ENIID {
				enis = append(enis, e)
			}
		}
		s.Attached--
	}
	s.ENIs = enis
	return s
}

func TestStepsAreSafeAndConverge(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := snapshots().Draw(t, "snapshot")
		for range 40 {
			steps := Plan(s)
			if len(steps) == 0 {
				target := max(s.WarmENIs*s.PerENI, s.Waiting, 1)
				if Free(s) < target && Room(s) > 0 {
					t.Fatalf("nothing to do with %d of %d free and room for %d: %+v", Free(s), target, Room(s), s)
				}
				return
			}
			step := steps[0]
			for _, e := range s.ENIs {
				if step.ENIID != e.ID {
					continue
				}
				if step.Kind == Retire && (e.Primary || e.InUse > 0 || e.Cooling > 0) {
					t.Fatalf("%v on an ENI in use: %+v", step, e)
				}
				if step.Kind == Assign && e.Addresses+step.Count > s.PerENI {
					t.Fatalf("%v is more than the ENI can have: %+v", step, e)
				}
			}
			s = apply(s, step)
			if limit := s.MaxENIs; step.Kind == Attach && (s.Attached > limit || s.KeepTrunkSlot && s.Attached == limit) {
				t.Fatalf("%v takes a slot that is not there: %+v", step, s)
			}
		}
		t.Fatalf("does not come to rest: %+v", s)
	})
}
