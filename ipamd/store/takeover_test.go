package store

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func former(id, address string) Allocation {
	return Allocation{Key: Key{id, "eth0"}, Network: "aws-cni", Pod: Pod{Namespace: "d", Name: id}, Regular: &Regular{Address: netip.MustParseAddr(address), Device: -1, RouteTable: -1}}
}

// TestATakeOverIsWholeOrNotAtAllWhereverThePowerGoes: and once only, which the file itself remembers.
func TestATakeOverIsWholeOrNotAtAllWhereverThePowerGoes(t *testing.T) {
	for steps := range 5 {
		for _, torn := range []bool{false, true} {
			disk := &machine{files: map[string][]byte{}, left: steps, torn: torn}
			s, _, err := Open("/x", Options{Disk: disk})
			if err != nil || !s.MayTakeOver() {
				t.Fatal(err)
			}
			_, err = s.TakeOver([]Allocation{former("a", "10.0.0.1"), former("b", "10.0.0.2")}, TakenOver{From: "f"})
			disk.left = -1
			after, kept, oerr := Open("/x", Options{Disk: disk})
			if oerr != nil || kept != "" {
				t.Fatalf("power for %d steps: %q, %v", steps, kept, oerr)
			}
			n, done := len(after.View().Allocations), after.View().TakenOver != nil
			if n != 0 && n != 2 || done != (n == 2) || err == nil && n != 2 || after.MayTakeOver() == done {
				t.Errorf("power for %d steps: TakeOver says %v; %d allocations, done %t", steps, err, n, done)
			}
		}
	}
}

func TestAStaleCheckpointIsNeverTakenIn(t *testing.T) {
	path := t.TempDir() + "/state"
	s, _, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if taken, err := s.TakeOver(nil, TakenOver{}); err != nil || taken != 0 {
		t.Fatal(taken, err)
	}
	again, _, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, again} {
		if _, err := s.TakeOver([]Allocation{former("a", "10.0.0.1")}, TakenOver{}); !errors.Is(err, ErrTakenOver) || len(s.View().Allocations) > 0 {
			t.Errorf("%v, %+v", err, s.View())
		}
	}
	lost := &machine{files: map[string][]byte{"/x": []byte("rubbish")}, left: -1}
	s, kept, err := Open("/x", Options{Disk: lost})
	if err != nil || kept == "" || s.MayTakeOver() {
		t.Errorf("after the loss of the file: %q, %v", kept, err)
	}
}

func TestTheFormerAgentsAreKnownFromOurOwn(t *testing.T) {
	for from, want := range map[string]bool{"/run/ipam.json": true, "": false} { // "": a new node, whose clock may have been set back since
		now := time.Now()
		s, _, err := Open(t.TempDir()+"/state", Options{Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		old := former("a", "10.0.0.1")
		old.Since = now.Add(-time.Hour)
		if s.View().IsTakenOver(old) {
			t.Error("taken over before the take-over")
		}
		if _, err := s.TakeOver([]Allocation{old}, TakenOver{From: from}); err != nil {
			t.Fatal(err)
		}
		now = now.Add(time.Second)
		ours, err := s.AssignRegular(Key{"c", "eth0"}, "n", Pod{UID: "u"}, []Regular{{Address: netip.MustParseAddr("10.0.0.2"), ENIID: "eni-1"}})
		if err != nil {
			t.Fatal(err)
		}
		if v := s.View(); v.IsTakenOver(old) != want || v.IsTakenOver(ours) {
			t.Errorf("from %q: the former agent's %t, ours %t", from, v.IsTakenOver(old), v.IsTakenOver(ours))
		}
	}
}

func TestWhatWasTakenOverIsHeldAndSettledOnce(t *testing.T) {
	s, _, err := Open(t.TempDir()+"/state", Options{})
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddr("10.0.0.1")
	taken, err := s.TakeOver([]Allocation{former("a", "10.0.0.1"), former("twin", "10.0.0.1"), former("a", "10.0.0.9")}, TakenOver{From: "f"})
	if v := s.View(); err != nil || taken != 1 || v.TakenOver.Pods != 1 || len(v.Allocations) != 1 {
		t.Fatalf("%d, %v: %+v", taken, err, v)
	}
	where := Regular{Address: addr, ENIID: "eni-1", Device: 0, RouteTable: 254}
	if _, err := s.AssignRegular(Key{"c", "eth0"}, "n", Pod{UID: "u"}, []Regular{where}); !errors.Is(err, ErrNoAddress) {
		t.Errorf("given again: %v", err)
	}
	if err := s.Retire("eni-9"); !errors.Is(err, ErrInUse) {
		t.Errorf("an ENI that may have it is given back: %v", err)
	}
	other := Regular{Address: netip.MustParseAddr("10.0.0.2"), ENIID: "eni-2"}
	for _, step := range []struct {
		uid   string
		where *Regular
		want  Allocation
	}{
		{"", &other, former("a", "10.0.0.1")},
		{"u1", nil, Allocation{Pod: Pod{UID: "u1"}, Regular: &Regular{}}},
		{"u2", &where, Allocation{Pod: Pod{UID: "u1"}, Regular: &where}},
		{"", &Regular{Address: addr, ENIID: "eni-2"}, Allocation{Pod: Pod{UID: "u1"}, Regular: &where}},
	} {
		if err := s.Settle(Key{"a", "eth0"}, step.uid, step.where); err != nil {
			t.Fatal(err)
		}
		got, _ := s.Get(Key{"a", "eth0"})
		if got.Pod.UID != step.want.Pod.UID || got.Regular.ENIID != step.want.Regular.ENIID || got.Regular.Address != addr {
			t.Errorf("after %q %v: %+v %+v", step.uid, step.where, got, got.Regular)
		}
	}
	if err := s.Retire("eni-9"); err != nil {
		t.Errorf("settled: %v", err)
	}
	if err := s.Settle(Key{"gone", "eth0"}, "u", &where); err != nil {
		t.Error(err)
	}
}

func TestWhatIsRecalledTakesNothingFromWhatTheStoreHolds(t *testing.T) {
	now := time.Unix(1000, 0)
	disk := &machine{files: map[string][]byte{}, left: -1}
	s, _, err := Open("/x", Options{Disk: disk, CoolDown: time.Minute, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	if n, err := s.Recall(nil); n != 0 || err != nil || len(disk.files) != 0 {
		t.Errorf("nothing to recall: %d, %v, written %v", n, err, disk.files)
	}
	if _, err := s.TakeOver(nil, TakenOver{From: "/run/ipam.json"}); err != nil {
		t.Fatal(err)
	}
	rests := netip.MustParseAddr("10.0.0.3")
	if err := s.Cool("eni-1", rests); err != nil {
		t.Fatal(err)
	}
	if n, err := s.Recall([]Allocation{former("a", "10.0.0.1"), former("twin", "10.0.0.1"), former("a", "10.0.0.2"), former("rests", rests.String())}); n != 1 || err != nil {
		t.Fatalf("%d, %v", n, err)
	}
	again, _, err := Open("/x", Options{Disk: disk, CoolDown: time.Minute, Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range []*Store{s, again} {
		if v := s.View(); len(v.Allocations) != 1 || v.Allocations[0].Key != (Key{"a", "eth0"}) || v.Allocations[0].Regular.Address.String() != "10.0.0.1" || len(v.Cooling) != 1 || v.IsTakenOver(v.Allocations[0]) {
			t.Errorf("%+v", v)
		}
	}
	disk.left = 0
	if n, err := s.Recall([]Allocation{former("b", "10.0.0.4")}); n != 0 || !errors.Is(err, ErrNotWritten) || len(s.View().Allocations) != 1 {
		t.Errorf("a disk that takes nothing: %d, %v, %+v", n, err, s.View().Allocations)
	}
}
