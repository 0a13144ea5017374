package ipamd

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// TestP7AnAddressIsGivenWithoutItsOldConnections is about who has what forgotten; that the kernel forgets it and nothing
// else is the kernel test's.
func TestP7AnAddressIsGivenWithoutItsOldConnections(t *testing.T) {
	w := newWorld(t, branchPod("green", "uid-g", 7))
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "uid-g", "green", ledgerv1.Bound))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	branch, other := netip.MustParseAddr("192.168.47.7"), netip.MustParseAddr("192.168.47.8")
	w.routing.track(branch, 3)
	w.routing.track(other, 3)
	mustAdd(t, s, addRequest("green", "uid-g", "s1"))
	if n := w.routing.track(branch, 0); n != 0 {
		t.Errorf("the pod was given an address with %d connections", n)
	}
	// What it has by now is its own.
	w.routing.track(branch, 5)
	mustAdd(t, s, addRequest("green", "uid-g", "s1"))
	if n := w.routing.track(branch, 0); n != 5 {
		t.Errorf("asked again, %d of its own 5 connections are left", n)
	}
	if n := w.routing.track(other, 0); n != 3 {
		t.Errorf("%d of another address's 3 connections are left", n)
	}
}

// An agent that is killed between storing an allocation and forgetting is asked again by the same sandbox.
func TestP7ASandboxThatWasNotAnsweredIsGivenNoOldConnections(t *testing.T) {
	w := newWorld(t, pod("red", "uid-r"))
	s, stop := w.start()
	eventually(t, "ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("red", "uid-r", "s1"))
	al, _ := s.a.store.Get(store.Key{ContainerID: "s1", IfName: "eth0"})
	stop()
	w.routing.track(al.Addresses()[0], 4)
	s, _ = w.start()
	mustAdd(t, s, addRequest("red", "uid-r", "s1"))
	if n := w.routing.track(al.Addresses()[0], 0); n != 0 {
		t.Errorf("the pod was given an address with %d connections", n)
	}
	w.routing.track(al.Addresses()[0], 5)
	mustAdd(t, s, addRequest("red", "uid-r", "s1"))
	if n := w.routing.track(al.Addresses()[0], 0); n != 5 {
		t.Errorf("asked again, %d of its own 5 connections are left", n)
	}
}

// A pod doesn't wait for its address's past when there is time for that beforehand.
func TestP7FreeAddressesLoseTheirPastOnceTheyHaveCooledDown(t *testing.T) {
	w := newWorld(t, pod("red", "uid-r"))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	forgotten := func(a netip.Addr) bool {
		s.a.past.mu.Lock()
		defer s.a.past.mu.Unlock()
		return s.a.past.forgotten[a]
	}
	for _, c := range s.a.candidates() {
		eventually(t, "nothing is known of "+c.Address.String()+" after the start, so it is looked at", func() bool { return forgotten(c.Address) })
	}
	mustAdd(t, s, addRequest("red", "uid-r", "s1"))
	al, _ := s.a.store.Get(store.Key{ContainerID: "s1", IfName: "eth0"})
	a := al.Addresses()[0]
	w.routing.track(a, 4)
	if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	s.a.changed.Fire()
	if forgotten(a) || w.routing.track(a, 0) != 4 {
		t.Error("its connections were forgotten while it cools down: others still call it")
	}
	w.pass(time.Hour)
	s.a.changed.Fire()
	eventually(t, "they are forgotten after the cool-down", func() bool { return forgotten(a) && w.routing.track(a, 0) == 0 })
}

func TestAPodIsWiredAlsoWhereConnectionsCanNotBeForgotten(t *testing.T) {
	w := newWorld(t, pod("red", "uid-r"))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.routing.set(errors.New("no conntrack"))
	mustAdd(t, s, addRequest("red", "uid-r", "s1"))
}
