package ipamd

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// wire is what the executable does with an address.
func (w *world) wire(addr string) {
	w.routing.mu.Lock()
	w.routing.pods = append(w.routing.pods, netip.MustParseAddr(addr))
	w.routing.mu.Unlock()
	w.cloud.mu.Lock()
	w.cloud.marked = append(w.cloud.marked, netip.MustParseAddr(addr))
	w.cloud.mu.Unlock()
}

func (w *world) unroute(addr string) {
	w.routing.mu.Lock()
	defer w.routing.mu.Unlock()
	w.routing.pods = slices.DeleteFunc(w.routing.pods, func(a netip.Addr) bool { return a.String() == addr })
}

func (w *world) unmark(addr string) {
	w.cloud.mu.Lock()
	defer w.cloud.mu.Unlock()
	w.cloud.marked = slices.DeleteFunc(w.cloud.marked, func(a netip.Addr) bool { return a.String() == addr })
}

func (w *world) delete(o client.Object) {
	w.t.Helper()
	if err := w.api.Delete(context.Background(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reclaim(s service) time.Duration {
	w.t.Helper()
	again, err := s.a.reclaim(context.Background())
	if err != nil {
		w.t.Fatal(err)
	}
	return again
}

func TestP4ADELThatWasNotHeardIsFoundOutAfterTheRestart(t *testing.T) {
	p := pod("a", "u1")
	w := newWorld(t, p, pod("stays", "u2"))
	s, kill := w.start()
	addr := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	kept := mustAdd(t, s, addRequest("stays", "u2", "s2")).GetRegular().GetAddress()
	w.wire(addr)
	w.wire(kept)
	kill()
	w.unroute(addr)
	w.unmark(addr)
	w.delete(p)
	w.pass(inFlight + time.Second)
	s, _ = w.start()
	eventually(t, "the allocation ends", func() bool { return len(s.a.store.View().Allocations) == 1 })
	v := s.a.store.View()
	if v.Allocations[0].Pod.UID != "u2" || len(v.Cooling) != 1 || v.Cooling[0].Address.String() != addr {
		t.Errorf("left: %+v", v)
	}
}

func TestP5NoSingleSourceEndsAnAllocation(t *testing.T) {
	for name, tc := range map[string]struct {
		// clear takes away all but one of the things that speak for the sandbox.
		clear func(w *world, p *corev1.Pod, addr string)
	}{
		"the pod lives": {func(w *world, p *corev1.Pod, addr string) {
			w.unroute(addr)
			w.unmark(addr)
			w.pass(time.Hour)
		}},
		"a link is marked with the address": {func(w *world, p *corev1.Pod, addr string) {
			w.unroute(addr)
			w.delete(p)
			w.pass(time.Hour)
		}},
		"a route leads to the address": {func(w *world, p *corev1.Pod, addr string) {
			w.unmark(addr)
			w.delete(p)
			w.pass(time.Hour)
		}},
		"its ADD may be under way": {func(w *world, p *corev1.Pod, addr string) {
			w.unroute(addr)
			w.unmark(addr)
			w.delete(p)
			w.pass(inFlight / 2) // the test takes its time, too
		}},
	} {
		t.Run(name, func(t *testing.T) {
			p := pod("a", "u1")
			w := newWorld(t, p)
			s, kill := w.start()
			addr := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
			w.wire(addr)
			kill()
			tc.clear(w, p, addr)
			s, _ = w.start()
			eventually(t, "ready", s.a.ready.Load)
			w.reclaim(s)
			if got := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(); got != addr {
				t.Errorf("the sandbox had %s and has %s", addr, got)
			}
		})
	}
}

func TestAnAPIServerThatIsAwayEndsNoAllocation(t *testing.T) {
	p := pod("a", "u1")
	w := newWorld(t, p)
	s, _ := w.start()
	mustAdd(t, s, addRequest("a", "u1", "s1"))
	w.delete(p)
	eventually(t, "the watch has heard", func() bool { _, ok := s.a.opt.Kube.Pod("default", "a"); return !ok })
	w.noGet.Store(true)
	w.pass(time.Hour)
	if freed, err := s.a.reclaimOne(context.Background(), s.a.store.View().Allocations[0].Key, nil); freed || err == nil {
		t.Errorf("freed=%t without the API server's word (%v)", freed, err)
	}
	w.noGet.Store(false)
	s.a.changed.Fire() // the hour passed on the test's clock only: no timer of the agent knows
	eventually(t, "the allocation ends, once the API server answers", func() bool { return len(s.a.store.View().Allocations) == 0 })
}

func TestANewerSandboxOfALivingPodEndsTheOlderOnes(t *testing.T) {
	w := newWorld(t, pod("a", "u1"))
	s, kill := w.start()
	first := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	kill() // the first sandbox's DEL comes now
	w.pass(time.Second)
	s, _ = w.start()
	second := mustAdd(t, s, addRequest("a", "u1", "s2")).GetRegular().GetAddress()
	w.pass(inFlight + time.Second)
	if again := w.reclaim(s); again == 0 || len(s.a.store.View().Allocations) != 2 {
		t.Fatalf("ended before the newer sandbox was wired (again in %v)", again)
	}
	w.wire(second)
	w.reclaim(s)
	v := s.a.store.View()
	if len(v.Allocations) != 1 || v.Allocations[0].Regular.Address.String() != second || v.Cooling[0].Address.String() != first {
		t.Errorf("left: %+v", v)
	}
}

func TestABranchPodWhoseDELWasNotHeardIsConfirmedToTheLedger(t *testing.T) {
	p := branchPod("green", "u1", 7)
	w := newWorld(t, p)
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	mustAdd(t, s, addRequest("green", "u1", "s1"))
	w.cloud.setVLAN(7, true)
	kill()
	w.delete(p)
	w.pass(inFlight + time.Second)
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if w.reclaim(s); len(w.released()) > 0 || len(s.a.store.View().Allocations) != 1 {
		t.Fatal("ended while the VLAN link is there")
	}
	w.cloud.setVLAN(7, false) // the DEL comes, and its word to the agent is lost
	eventually(t, "the confirmation", func() bool { return slices.Equal(w.released(), []string{"u1"}) })
}
