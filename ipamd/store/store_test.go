package store

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"slices"
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
		held := map[Key]netip.Addr{}        // answered
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
				a, err = s.AssignRegular(k, "n", Pod{"d", k.ContainerID, "uid-" + k.ContainerID}, candidates())
				if err == nil {
					if was, ok := held[k]; ok && was != a.Regular.Address {
						t.Fatalf("%s had %s and was told %s", k, was, a.Regular.Address)
					}
					for o, addr := range held {
						if o != k && addr == a.Regular.Address {
							t.Fatalf("%s has %s, now %s too", o, addr, k)
						}
					}
					if _, again := held[k]; !again && !maybe[k] {
						if now.Sub(freed[a.Regular.Address]) < 30*time.Second {
							t.Fatalf("%s was given %s after its end", a.Regular.Address, now.Sub(freed[a.Regular.Address]))
						}
						if retired[a.Regular.ENIID] || leaving[a.Regular.Address] {
							t.Fatalf("%s was given and is on its way out", a.Regular.Address)
						}
					}
					held[k] = a.Regular.Address
					delete(maybe, k)
				} else if errors.Is(err, errPower) {
					maybe[k] = true
				}
			case 2:
				addr, had := held[k]
				_, _, err = s.Free(k)
				if had {
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
				id := fmt.Sprintf("eni-%d", rapid.IntRange(0, 1).Draw(t, "eni"))
				if err = s.Retire(id); err == nil {
					retired[id] = true
					for o, addr := range held {
						if i := slices.IndexFunc(candidates(), func(r Regular) bool { return r.Address == addr }); candidates()[i].ENIID == id {
							t.Fatalf("%s was retired while %s has %s", id, o, addr)
						}
					}
				}
			}
			switch c := rapid.SampledFrom(candidates()).Draw(t, "address"); rapid.IntRange(0, 5).Draw(t, "leave") {
			case 0:
				var noted []netip.Prefix
				if noted, err = s.Leave(c.ENIID, []netip.Prefix{netip.PrefixFrom(c.Address, 32)}); err == nil && len(noted) == 1 {
					leaving[c.Address] = true
					for o, addr := range held {
						if addr == c.Address || now.Sub(freed[c.Address]) < 30*time.Second {
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
			for k, addr := range held {
				if a, ok := s.Get(k); !ok || a.Regular.Address != addr {
					t.Fatalf("%s was told %s, the store has %v", k, addr, a)
				}
			}
		}
		if err := s.cur.check(); err != nil {
			t.Fatal(err)
		}
		_ = maps.Keys(maybe)
	})
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
