//go:build kernel

package datapath

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestCollectTakesWhatAKilledExecutableLeft: a link that was never marked, a container id that is marked by its hash, and
// the lock that keeps it from an ADD's unfinished work.
func TestCollectTakesWhatAKilledExecutableLeft(t *testing.T) {
	host, vpc := nstest.New(t), nstest.New(t)
	host.Veth(t, "trunk", vpc, "fabric")
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "somebodys"
	foreign := netlink.NewVeth(attrs)
	foreign.PeerName = "other-end"
	if err := host.Handle.LinkAdd(foreign); err != nil {
		t.Fatal(err)
	}
	before := host.Snapshot(t)
	long := Owner{strings.Repeat("0123456789abcdef", 12), "eth0"}
	plan, pod := testPlan(t, host.Link(t, "trunk").Attrs().Index)["branch"], nstest.New(t)
	for i, step := range plan.Steps {
		switch s := step.(type) {
		case AddVeth:
			s.Mark.Owner = long
			plan.Steps[i] = s
		case AddVLAN:
			s.Mark.Owner = long
			plan.Steps[i] = s
		}
	}
	plan.Owner = long
	host.Do(t, func() error { return Apply(t.Context(), plan, pod.FD()) })
	wired := host.Snapshot(t)
	attrs = netlink.NewLinkAttrs()
	attrs.Name, attrs.Group = "eni0123456789a", linkGroup
	halfMade := netlink.NewVeth(attrs)
	halfMade.PeerName = "never"
	if err := host.Handle.LinkAdd(halfMade); err != nil {
		t.Fatal(err)
	}
	path := t.TempDir() + "/lock"
	collect := func(ctx context.Context, valid ...Owner) (removed []string, err error) {
		lock, err := OpenLock(path)
		if err != nil {
			t.Fatal(err)
		}
		defer lock.Close()
		_ = host.Try(func() error { removed, err = Collect(ctx, lock, Valid(valid)); return nil })
		return removed, err
	}
	atWork, err := OpenLock(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := atWork.Pod(t.Context(), "shop", "web"); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if removed, err := collect(short, long); !errors.Is(err, context.DeadlineExceeded) || len(removed) > 0 {
		t.Errorf("while an ADD is at work: %v, %v", removed, err)
	}
	if err := atWork.Close(); err != nil {
		t.Fatal(err)
	}
	if removed, err := collect(t.Context(), long); err != nil || !slices.Equal(removed, []string{"delete link eni0123456789a"}) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if after := host.Snapshot(t); !slices.Equal(wired, after) {
		t.Errorf("the valid sandbox has %q, had %q", after, wired)
	}
	if removed, err := collect(t.Context()); err != nil || len(removed) < 2 {
		t.Errorf("removed %q, %v", removed, err)
	}
	if after := host.Snapshot(t); !slices.Equal(before, after) {
		t.Errorf("left %q, want %q", after, before)
	}
}
