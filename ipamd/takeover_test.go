package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/ipamd/store"
)

// formerAgent leaves the checkpoint of an agent that gave addresses to pods of these names, and their routes in the kernel.
func (w *world) formerAgent(t *testing.T, addresses map[string]string) {
	t.Helper()
	var entries []string
	for _, name := range []string{"a", "b", "c"} {
		if addr, ok := addresses[name]; ok {
			entries = append(entries, fmt.Sprintf(`{"networkName":"aws-cni","containerID":"old-%s","ifName":"eth0","ipv4":%q,"allocationTimestamp":%d,"metadata":{"k8sPodNamespace":"default","k8sPodName":%q,"interfacesCount":1}}`,
				name, addr, w.now().Add(-time.Hour).UnixNano(), name))
			w.routing.mu.Lock()
			w.routing.pods = append(w.routing.pods, netip.MustParseAddr(addr))
			w.routing.mu.Unlock()
		}
	}
	text := `{"version":"vpc-cni-ipam/1","allocations":[` + strings.Join(entries, ",") + `]}`
	if err := os.WriteFile(w.checkpoint(), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func running(name, uid, ip string) *corev1.Pod {
	p := pod(name, uid)
	if ip != "" {
		p.Status.PodIPs = []corev1.PodIP{{IP: ip}}
	}
	return p
}

func (s service) old(name string) store.Allocation {
	al, _ := s.a.store.Get(store.Key{ContainerID: "old-" + name, IfName: "eth0"})
	return al
}

func TestTheFormerAgentsPodsAreTakenOverOnceAndKeepTheirAddresses(t *testing.T) {
	w := newWorld(t, running("a", "ua", "192.168.1.11"), running("b", "ub", ""), pod("new", "un"))
	w.cloud.mu.Lock()
	w.cloud.grow(w.cloud.enis["eni-1"], 3)
	w.cloud.mu.Unlock()
	w.formerAgent(t, map[string]string{"a": "192.168.1.11", "b": "192.168.1.12"})
	s, kill := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	eventually(t, "it is known whose and where a's address is", func() bool {
		al := s.old("a")
		return al.Pod.UID == "ua" && al.Regular.ENIID == "eni-1" && al.Regular.Device == 0
	})
	eventually(t, "where b's address is", func() bool { return s.old("b").Regular.Settled() })
	if uid := s.old("b").Pod.UID; uid != "" {
		t.Errorf("b has no address in its status, and its UID is taken for %q", uid)
	}
	if n := s.a.sizes(); n.orphans != 0 || n.assigned != 2 {
		t.Errorf("%d are held without an owner, %d assigned", n.orphans, n.assigned)
	}
	given := mustAdd(t, s, addRequest("new", "un", "c-new")).GetRegular().GetAddress()
	if given == "192.168.1.11" || given == "192.168.1.12" {
		t.Errorf("%s is given twice", given)
	}
	// The same sandbox, asked for again: the answer is what it has, and the UID is learned from it.
	if r := mustAdd(t, s, addRequest("b", "ub", "old-b")).GetRegular(); r.GetAddress() != "192.168.1.12" || s.old("b").Pod.UID != "ub" {
		t.Errorf("b is %v, UID %q", r, s.old("b").Pod.UID)
	}
	if _, err := s.Del(t.Context(), delRequest("old-a")); err != nil {
		t.Fatal(err)
	}
	if v := s.a.store.View(); len(v.Allocations) != 2 || len(v.Cooling) != 1 || v.Cooling[0].ENIID != "eni-1" || v.TakenOver.Pods != 2 {
		t.Errorf("after a's end: %+v", v)
	}
	kill()
	s, _ = w.start() // the checkpoint, which names a, is there still
	eventually(t, "the agent is ready", s.a.ready.Load)
	if al := s.old("a"); al.Regular != nil {
		t.Errorf("the stale checkpoint was read again: %+v", al)
	}
}

func TestAnUnreadableCheckpointIsKeptAsideAndWhatIsWiredStaysHeld(t *testing.T) {
	w := newWorld(t, pod("x", "ux"), pod("y", "uy"), pod("z", "uz"))
	w.cloud.mu.Lock()
	w.cloud.grow(w.cloud.enis["eni-1"], 3)
	w.cloud.mu.Unlock()
	w.formerAgent(t, map[string]string{"a": "192.168.1.11"})
	if err := os.WriteFile(w.checkpoint(), []byte(`{"version":"vpc-cni-ipam/1","alloc`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	kept, err := filepath.Glob(w.checkpoint() + ".unreadable-*")
	if _, serr := os.Stat(w.checkpoint()); err != nil || len(kept) != 1 || serr == nil {
		t.Errorf("kept as %q, %v; still there: %v", kept, err, serr)
	}
	if v := s.a.store.View(); v.TakenOver == nil || v.TakenOver.Problem == "" {
		t.Errorf("%+v", v.TakenOver)
	}
	for _, p := range []string{"x", "y", "z"} {
		if addr := mustAdd(t, s, addRequest(p, "u"+p, "c"+p)).GetRegular().GetAddress(); addr == "192.168.1.11" {
			t.Errorf("%s has the wired address", p)
		}
	}
	eventually(t, "the node's events say it", func() bool {
		var events corev1.EventList
		if err := w.api.List(t.Context(), &events); err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(events.Items, func(e corev1.Event) bool { return e.Reason == "CheckpointUnreadable" })
	})
}

// TestP5APodThatWasTakenOverEndsOnlyWhenAllAgree: without its UID, a name alone ends nothing.
func TestP5APodThatWasTakenOverEndsOnlyWhenAllAgree(t *testing.T) {
	for name, c := range map[string]struct {
		pod   *corev1.Pod // of its name, in the API server
		wired bool
		ends  bool
	}{
		"the pod is gone and so is its route":            {nil, false, true},
		"the pod is gone and its route is there":         {nil, true, false},
		"a pod of its name has no address yet":           {running("a", "ua", ""), false, false},
		"a pod of its name has its address":              {running("a", "ua", "192.168.1.11"), false, false},
		"a pod of its name has another, its route stays": {running("a", "ua2", "192.168.1.99"), true, false},
		"a pod of its name has another, its route went":  {running("a", "ua2", "192.168.1.99"), false, true},
	} {
		t.Run(name, func(t *testing.T) {
			// b is another pod that was taken over: two without a UID are not each other's successors.
			w := newWorld(t, running("b", "ub", ""))
			if c.pod != nil {
				if err := w.api.Create(t.Context(), c.pod); err != nil {
					t.Fatal(err)
				}
			}
			w.formerAgent(t, map[string]string{"a": "192.168.1.11", "b": "192.168.1.12"})
			if !c.wired {
				w.unroute("192.168.1.11")
			}
			s, _ := w.start()
			eventually(t, "the pods are known", s.a.opt.Kube.PodsSynced)
			w.reclaim(s)
			if ended := s.old("a").Regular == nil; ended != c.ends {
				t.Errorf("ended: %t", ended)
			}
			if s.old("b").Regular == nil {
				t.Error("b ended")
			}
		})
	}
}

// TestWhatTheFormerAgentWiredIsGoneBeforeItsAddressIsFree: a DEL without the runtime's cached result has left it.
func TestWhatTheFormerAgentWiredIsGoneBeforeItsAddressIsFree(t *testing.T) {
	w := newWorld(t, running("a", "ua", "192.168.1.11"), running("b", "ub", "192.168.1.12"), pod("new", "un"))
	w.cloud.mu.Lock()
	w.cloud.grow(w.cloud.enis["eni-1"], 3)
	w.cloud.mu.Unlock()
	w.formerAgent(t, map[string]string{"a": "192.168.1.11", "b": "192.168.1.12"})
	fake := &sweeps{w: w, stuck: errors.New("the kernel is busy")}
	w.sweeper = fake
	s, _ := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("new", "un", "c-new"))
	if _, err := s.Del(t.Context(), delRequest("old-a")); err == nil || s.old("a").Regular == nil {
		t.Errorf("it is wired and its end was told: %v, held: %+v", err, s.old("a"))
	}
	fake.mu.Lock()
	fake.stuck = nil
	fake.mu.Unlock()
	for _, sandbox := range []string{"old-a", "c-new"} {
		if _, err := s.Del(t.Context(), delRequest(sandbox)); err != nil {
			t.Error(err)
		}
	}
	// Of b no DEL is heard, and its links are gone.
	w.unroute("192.168.1.12")
	w.delete(running("b", "ub", ""))
	eventually(t, "b's end is found out", func() bool { w.reclaim(s); return s.old("b").Regular == nil })
	fake.mu.Lock()
	defer fake.mu.Unlock()
	if want := []string{"default/a eth0 192.168.1.11", "default/b eth0 192.168.1.12"}; !slices.Equal(fake.unwired, want) {
		t.Errorf("unwired %q, want %q", fake.unwired, want)
	}
}

func TestRulesOfTheFormerAgentGoOnceOursAreInPlace(t *testing.T) {
	w := newWorld(t)
	var calls atomic.Int64
	w.formerNAT = func(context.Context) (removed, left []string, err error) {
		if calls.Add(1) == 1 {
			return nil, nil, errors.New("the kernel is busy")
		}
		return []string{"chain nat AWS-SNAT-CHAIN-0"}, nil, nil
	}
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "what failed is tried again with the next change", func() bool {
		s.a.meddled.Fire()
		return calls.Load() >= 2
	})
	rounds := func() int {
		w.routing.mu.Lock()
		defer w.routing.mu.Unlock()
		return w.routing.rounds
	}
	before := rounds()
	eventually(t, "two rounds more", func() bool {
		s.a.meddled.Fire()
		return rounds() >= before+2 // the first of them is over
	})
	if n := calls.Load(); n != 2 {
		t.Errorf("done once, it was called %d times more", n-2)
	}
}
