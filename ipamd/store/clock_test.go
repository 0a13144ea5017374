package store

import (
	"errors"
	"net/netip"
	"testing"
	"time"
	"unsafe"
)

// set is what time.Now returns after somebody has set the machine's clock: the clock that time is measured by goes on.
func set(t time.Time, by time.Duration) time.Time {
	const seconds = 30 // time.Time with a monotonic reading has seconds from bit 30 of its first word on
	*(*uint64)(unsafe.Pointer(&t)) += uint64(int64(by/time.Second)) << seconds
	return t
}

// TestASetClockNeitherEndsNorProlongsACoolDown while the agent runs.
func TestASetClockNeitherEndsNorProlongsACoolDown(t *testing.T) {
	for _, jump := range []time.Duration{0, 5 * time.Hour, -5 * time.Hour} {
		start := time.Now()
		now := start
		if d := set(now, jump).Sub(now); d != 0 || set(now, jump).Unix()-now.Unix() != int64(jump/time.Second) {
			t.Fatalf("this Go's time is not as the test believes: %v", d)
		}
		s, _, err := Open(t.TempDir()+"/state", Options{CoolDown: 30 * time.Second, Now: func() time.Time { return now }})
		if err != nil {
			t.Fatal(err)
		}
		one := candidates()[:1]
		assign := func(c string) error {
			_, err := s.AssignRegular(Key{c, "eth0"}, "n", Pod{UID: c}, one)
			return err
		}
		if err := assign("a"); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.Free(Key{"a", "eth0"}); err != nil {
			t.Fatal(err)
		}
		now = set(start.Add(29*time.Second), jump)
		if err := assign("b"); !errors.Is(err, ErrNoAddress) {
			t.Errorf("clock set by %s: given while it cools: %v", jump, err)
		}
		if c := s.View().Cooling; len(c) != 1 || c[0].Until.Sub(now) != time.Second {
			t.Errorf("clock set by %s: %v", jump, c)
		}
		now = set(start.Add(30*time.Second), jump)
		if err := assign("b"); err != nil {
			t.Errorf("clock set by %s: not given after its cool-down: %v", jump, err)
		}
	}
}

// TestStoredTimesOfTheFutureBlockNothing: the clock was set back between two runs.
func TestStoredTimesOfTheFutureBlockNothing(t *testing.T) {
	now := time.Now()
	o := Options{CoolDown: 30 * time.Second, Now: func() time.Time { return now }}
	path := t.TempDir() + "/state"
	s, _, err := Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Cool("eni-0", netip.MustParseAddr("10.0.0.1")); err != nil {
		t.Fatal(err)
	}
	now = now.Add(-5 * time.Hour).Round(0)
	if s, _, err = Open(path, o); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AssignRegular(Key{"a", "eth0"}, "n", Pod{UID: "a"}, candidates()[:1]); !errors.Is(err, ErrNoAddress) {
		t.Errorf("given at once: %v", err)
	}
	now = now.Add(30 * time.Second)
	if _, err := s.AssignRegular(Key{"a", "eth0"}, "n", Pod{UID: "a"}, candidates()[:1]); err != nil {
		t.Errorf("one cool-down later: %v", err)
	}
}
