package store

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// machine is a disk that can lose power between, and in the middle of, any two steps.
type machine struct {
	files map[string][]byte
	left  int // steps until the power goes; negative: never
	torn  bool
}

var errPower = errors.New("the power went")

func (m *machine) step() error {
	if m.left == 0 {
		return errPower
	}
	m.left--
	return nil
}

func (m *machine) ReadFile(name string) ([]byte, error) {
	b, ok := m.files[name]
	if !ok {
		return nil, fs.ErrNotExist
	}
	return b, nil
}

func (m *machine) WriteSynced(name string, b []byte) error {
	if err := m.step(); err != nil {
		if m.torn {
			m.files[name] = b[:len(b)/2]
		}
		return err
	}
	m.files[name] = slices.Clone(b)
	return nil
}

func (m *machine) Rename(from, to string) error {
	if err := m.step(); err != nil {
		return err
	}
	m.files[to] = m.files[from]
	delete(m.files, from)
	return nil
}

func (m *machine) SyncDir(string) error { return m.step() }

func candidates() (out []Regular) {
	for i := range 6 {
		out = append(out, Regular{Address: netip.AddrFrom4([4]byte{10, 0, 0, byte(i + 1)}), ENIID: fmt.Sprintf("eni-%d", i/3), Device: i / 3})
	}
	return out
}

// ofSecondCard are of another network card.
func ofSecondCard() (out []Regular) {
	for i := range 4 {
		out = append(out, Regular{Address: netip.AddrFrom4([4]byte{10, 0, 1, byte(i + 1)}), ENIID: fmt.Sprintf("eni-%d", 10+i/2), Card: 1, Device: i / 2})
	}
	return out
}

// TestAgainstAPlainMapWithPowerCuts: what was answered holds after any cut; what was not answered may or may not have
// happened; no address belongs to two, and none is given before it has cooled.
func TestAgainstAPlainMapWithPowerCuts(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(1000, 0)
		disk := &machine{files: map[string][]byte{}, left: -1}
		open := func() *Store {
			disk.left = -1
			s, kept, err := Open("/x", Options{CoolDown: 30 * time.Second, Now: func() time.Time { return now }, Disk: disk})
			if err != nil || kept != "" {
				t.Fatalf("open: kept %q, %v", kept, err)
			}
			return s
		}
		s := open()
		all := slices.Concat(candidates(), ofSecondCard())
		held := map[Key][]netip.Addr{}      // answered
		maybe := map[Key]bool{}             // asked, not answered
		freed := map[netip.Addr]time.Time{} // last time that it was surely held
		retired := map[string]bool{}
		leaving := map[netip.Addr]bool{}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			k := Key{fmt.Sprintf("c%d", rapid.IntRange(0, 7).Draw(t, "sandbox")), "eth0"}
			cut := rapid.IntRange(0, 9).Draw(t, "cut")
			disk.left, disk.torn = -1, rapid.Bool().Draw(t, "torn")
			if cut < 4 {
				disk.left = cut
			}
			var err error
			switch rapid.IntRange(0, 4).Draw(t, "what") {
			case 0, 1:
				var a Allocation
				var further []Card
				if k.ContainerID >= "c5" { // pods with several interfaces
					further = []Card{{1, ofSecondCard()}}
				}
				a, err = s.AssignRegular(k, "n", Pod{"d", k.ContainerID, "uid-" + k.ContainerID}, candidates(), further...)
				if err == nil {
					if was, ok := held[k]; ok && !slices.Equal(was, a.Addresses()) {
						t.Fatalf("%s had %v and was told %v", k, was, a.Addresses())
					}
					if len(a.Addresses()) != 1+len(further) {
						t.Fatalf("%s was told %v", k, a.Addresses())
					}
					for _, r := range a.Regulars() {
						for o, addrs := range held {
							if o != k && slices.Contains(addrs, r.Address) {
								t.Fatalf("%s has %s, now %s too", o, r.Address, k)
							}
						}
						if _, again := held[k]; !again && !maybe[k] {
							if now.Sub(freed[r.Address]) < 30*time.Second {
								t.Fatalf("%s was given %s after its end", r.Address, now.Sub(freed[r.Address]))
							}
							if retired[r.ENIID] || leaving[r.Address] {
								t.Fatalf("%s was given and is on its way out", r.Address)
							}
						}
					}
					held[k] = a.Addresses()
					delete(maybe, k)
				} else if errors.Is(err, errPower) {
					maybe[k] = true
				}
			case 2:
				addrs, had := held[k]
				_, _, err = s.Free(k)
				for _, addr := range addrs {
					freed[addr] = now
				}
				if err == nil {
					delete(held, k)
					delete(maybe, k)
				} else if had {
					delete(held, k)
					maybe[k] = true
				}
			case 3:
				now = now.Add(time.Duration(rapid.IntRange(1, 40).Draw(t, "seconds")) * time.Second)
			case 4:
				id := rapid.SampledFrom([]string{"eni-0", "eni-1", "eni-10", "eni-11"}).Draw(t, "eni")
				if err = s.Retire(id); err == nil {
					retired[id] = true
					for o, addrs := range held {
						if slices.ContainsFunc(all, func(r Regular) bool { return r.ENIID == id && slices.Contains(addrs, r.Address) }) {
							t.Fatalf("%s was retired while %s has %v", id, o, addrs)
						}
					}
				}
			}
			switch c := rapid.SampledFrom(all).Draw(t, "address"); rapid.IntRange(0, 5).Draw(t, "leave") {
			case 0:
				var noted []netip.Prefix
				if noted, err = s.Leave(c.ENIID, []netip.Prefix{netip.PrefixFrom(c.Address, 32)}); err == nil && len(noted) == 1 {
					leaving[c.Address] = true
					for o, addrs := range held {
						if slices.Contains(addrs, c.Address) || now.Sub(freed[c.Address]) < 30*time.Second {
							t.Fatalf("%s leaves, %s has it or it cools", c.Address, o)
						}
					}
				}
			case 1:
				delete(leaving, c.Address)
				err = s.Left(c.ENIID, []netip.Prefix{netip.PrefixFrom(c.Address, 32)})
			}
			if errors.Is(err, errPower) || rapid.IntRange(0, 5).Draw(t, "kill") == 0 {
				s = open()
			}
			for k, addrs := range held {
				if a, ok := s.Get(k); !ok || !slices.Equal(a.Addresses(), addrs) {
					t.Fatalf("%s was told %v, the store has %v", k, addrs, a)
				}
			}
		}
		if err := s.cur.check(); err != nil {
			t.Fatal(err)
		}
		_ = maps.Keys(maybe)
	})
}

func TestAPodHasAnAddressOfEachCardOrNone(t *testing.T) {
	s, _, err := Open(t.TempDir()+"/state", Options{CoolDown: time.Minute})
	if err != nil {
		t.Fatal(err)
	}
	assign := func(c string, further ...Card) (Allocation, error) {
		return s.AssignRegular(Key{c, "eth0"}, "n", Pod{UID: c}, candidates(), further...)
	}
	second, third := Card{1, ofSecondCard()[:1]}, Card{2, nil}
	_, err = assign("a", second, third)
	var lacking *LackingError
	if !errors.Is(err, ErrNoAddress) || !errors.As(err, &lacking) || !slices.Equal(lacking.Cards, []int{2}) || !strings.Contains(err.Error(), "card 2") {
		t.Fatalf("%v", err)
	}
	if v := s.View(); len(v.Allocations)+len(v.Cooling) != 0 {
		t.Errorf("something is held: %+v", v)
	}
	if a, err := assign("a", second); err != nil || len(a.Further) != 1 || a.Further[0].Card != 1 {
		t.Fatalf("%+v, %v", a, err)
	}
	if _, err := assign("b", second); !errors.As(err, &lacking) || !slices.Equal(lacking.Cards, []int{1}) {
		t.Errorf("the same address twice: %v", err)
	}
	if err := s.Retire(second.Candidates[0].ENIID); !errors.Is(err, ErrInUse) {
		t.Errorf("retired under a pod: %v", err)
	}
	if _, _, err := s.Free(Key{"a", "eth0"}); err != nil || len(s.View().Cooling) != 2 {
		t.Errorf("%v, %+v", err, s.View().Cooling)
	}
	if err := s.Retire(second.Candidates[0].ENIID); !errors.Is(err, ErrInUse) {
		t.Errorf("retired while its address rests: %v", err)
	}
}

// TestAReleaseThatKnowsOneInterfaceKeepsTheFirst: an update that is taken back loses no pod's first address.
func TestAReleaseThatKnowsOneInterfaceKeepsTheFirst(t *testing.T) {
	b, err := encode(&state{Allocations: []Allocation{{Key: Key{"c", "eth0"}, Pod: Pod{UID: "u"}, Regular: &candidates()[0], Further: ofSecondCard()[:1]}}})
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Version int
		State   struct {
			Allocations []struct {
				ContainerID string
				Regular     struct {
					Address netip.Addr
					ENIID   string
				}
			}
		}
	}
	if err := json.Unmarshal(b, &file); err != nil || file.Version != 1 || len(file.State.Allocations) != 1 || file.State.Allocations[0].Regular.Address != candidates()[0].Address {
		t.Errorf("%s: %+v, %v", b, file, err)
	}
	again, err := decode(b)
	if err != nil || len(again.Allocations[0].Addresses()) != 2 {
		t.Errorf("%+v, %v", again, err)
	}
	if old := candidates()[0]; !strings.Contains(string(b), fmt.Sprintf(`{"address":"%s","eniID":"eni-0","device":0,"routeTable":0}`, old.Address)) {
		t.Errorf("an address of the first card is written otherwise than before: %s", b)
	}
}

func TestAFailedWriteIsMadeGoodByTheNext(t *testing.T) {
	disk := &machine{files: map[string][]byte{}, left: 2} // the rename happens, the sync of the directory does not
	s, _, _ := Open("/x", Options{Disk: disk})
	k := Key{"c", "eth0"}
	if _, err := s.AssignRegular(k, "n", Pod{UID: "u"}, candidates()); !errors.Is(err, errPower) {
		t.Fatal(err)
	}
	disk.left = -1
	if err := s.Forget("nobody"); err != nil {
		t.Fatal(err)
	}
	s, _, _ = Open("/x", Options{Disk: disk})
	if _, ok := s.Get(k); ok {
		t.Error("an allocation that failed is on disk")
	}
}

func TestAVLANIdHasOnePodAndAReleasedPodIsNeverWiredAgain(t *testing.T) {
	s, _, err := Open(t.TempDir()+"/state", Options{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := Pod{"d", "a", "ua"}, Pod{"d", "b", "ub"}
	assign := func(c string, p Pod) error {
		_, err := s.AssignBranch(Key{c, "eth0"}, "n", p, Branch{ENIID: "eni-1", VLAN: 7})
		return err
	}
	if err := assign("c1", a); err != nil {
		t.Fatal(err)
	}
	if err := assign("c2", b); !errors.Is(err, ErrVLANHeld) {
		t.Errorf("the VLAN's second pod: %v", err)
	}
	if err := assign("c1", b); !errors.Is(err, ErrOtherPod) {
		t.Errorf("the sandbox's second pod: %v", err)
	}
	if _, err := s.Release(Released{PodUID: "ua", VLAN: 7}); !errors.Is(err, ErrInUse) {
		t.Errorf("released while held: %v", err)
	}
	if _, found, err := s.Free(Key{"c1", "eth0"}); !found || err != nil {
		t.Fatal(found, err)
	}
	if _, err := s.Release(Released{PodUID: "ua", VLAN: 7}); err != nil {
		t.Fatal(err)
	}
	if err := assign("c3", a); !errors.Is(err, ErrReleased) {
		t.Errorf("wired again: %v", err)
	}
	if err := assign("c2", b); err != nil {
		t.Error(err)
	}
}

func FuzzDecode(f *testing.F) {
	good, _ := encode(&state{Allocations: []Allocation{{Key: Key{"c", "eth0"}, Regular: &candidates()[0]}}})
	f.Add(good)
	f.Add([]byte(`{"version":1}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decode(b)
		if err != nil {
			return
		}
		again, err := encode(s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decode(again); err != nil {
			t.Fatal(err)
		}
	})
}
