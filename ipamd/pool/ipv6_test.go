package pool

import (
	"net/netip"
	"reflect"
	"testing"

	"pgregory.net/rapid"
)

// ipv6Unit is the n-th prefix of a device.
func ipv6Unit(device, n int) Unit {
	return Unit{Prefix: netip.PrefixFrom(netip.AddrFrom16([16]byte{0x20, 1, 8: byte(device), 9: byte(n)}), 80)}
}

// Property: from any state of the instance the node comes to its prefix in one step, of the primary ENI and nothing else,
// and then nothing is done any more: whatever the targets, whatever is attached, cordoned or not. What pods hold of a prefix
// that no source shows is no prefix.
func TestAnIPv6NodeComesToOnePrefixFromAnyState(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := Snapshot{
			Targets: Targets{
				WarmENIs: rapid.IntRange(0, 3).Draw(t, "warm ENIs"), WarmPrefixes: rapid.IntRange(-1, 2).Draw(t, "warm prefixes"), WarmIPs: rapid.IntRange(0, 20).Draw(t, "warm IPs"),
				MaxENIs: rapid.IntRange(1, 4).Draw(t, "ENIs"), Places: rapid.IntRange(1, 9).Draw(t, "places"), Prefixes: rapid.Bool().Draw(t, "Nitro"), IPv6: true,
			},
			KeepTrunkSlot: rapid.Bool().Draw(t, "trunk"), Waiting: rapid.IntRange(0, 300).Draw(t, "waiting"),
			NoENI: rapid.Bool().Draw(t, "no ENI"), Settled: rapid.Bool().Draw(t, "cordoned"), Frozen: rapid.Bool().Draw(t, "frozen"),
		}
		has := -1
		for device := range rapid.IntRange(0, 3).Draw(t, "attached") {
			e := ENI{ID: string(rune('a' + device)), Primary: device == 0, Device: device, Draining: device > 0 && rapid.Bool().Draw(t, "draining")}
			prefixes := rapid.IntRange(0, 2).Draw(t, "prefixes")
			for n := range prefixes {
				u := ipv6Unit(device, n)
				u.InUse, u.Cooling = rapid.IntRange(0, 300).Draw(t, "in use"), rapid.IntRange(0, 300).Draw(t, "cooling")
				e.Units = append(e.Units, u)
			}
			if rapid.Bool().Draw(t, "held of what is not shown") {
				e.Units = append(e.Units, Unit{Prefix: netip.MustParsePrefix("2001:ff::7/128"), InUse: 1})
			}
			if device == 0 {
				has = prefixes
			}
			s.ENIs = append(s.ENIs, e)
			s.Attached++
		}
		var want []Step
		if !s.Frozen && s.Prefixes && has == 0 {
			want = []Step{{Kind: Assign, ENIID: "a", Count: 1, Prefixes: true}}
		}
		steps := Plan(s)
		if !reflect.DeepEqual(steps, want) {
			t.Fatalf("%+v, want %+v", steps, want)
		}
		if (Room(s) > 0) != (want != nil) {
			t.Fatalf("room for %d, steps %+v", Room(s), steps)
		}
		if want == nil {
			return
		}
		s.ENIs[0].Units = append(s.ENIs[0].Units, ipv6Unit(0, 9))
		if again := Plan(s); again != nil || Free(s) < s.Waiting || Missing(s) != 0 || Room(s) != 0 {
			t.Fatalf("then %+v, %d free, %d missing", again, Free(s), Missing(s))
		}
	})
}

func TestAnIPv6PrefixThatEC2LacksIsNoRoom(t *testing.T) {
	s := Snapshot{Targets: Targets{IPv6: true, Prefixes: true}, ENIs: []ENI{{ID: "a", Primary: true, NoPrefix: true}}}
	if Room(s) != 0 || len(Plan(s)) != 1 {
		t.Errorf("room for %d, %+v", Room(s), Plan(s))
	}
}
