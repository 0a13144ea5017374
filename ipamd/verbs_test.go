package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

func checkRequest(name, uid, sandbox string) *rpc.CheckRequest {
	in := addRequest(name, uid, sandbox)
	return &rpc.CheckRequest{Version: "test", Pod: in.GetPod(), Attachment: in.GetAttachment()}
}

func TestCheckAnswersAsAddDidAndAllocatesNothing(t *testing.T) {
	w := newWorld(t, pod("a", "u1"))
	s, _ := w.start()
	if _, err := s.Check(t.Context(), checkRequest("a", "u1", "s1")); status.Code(err) != codes.NotFound {
		t.Errorf("before Add: %v", err)
	}
	added := mustAdd(t, s, addRequest("a", "u1", "s1"))
	got, err := s.Check(t.Context(), checkRequest("a", "u1", "s1"))
	if err != nil || !proto.Equal(got, added) {
		t.Errorf("Check says %v, %v; Add said %v", got, err, added)
	}
	for _, in := range []*rpc.CheckRequest{checkRequest("a", "u1", "s2"), checkRequest("a", "another", "s1")} {
		if _, err := s.Check(t.Context(), in); status.Code(err) != codes.NotFound {
			t.Errorf("%v: %v", in, err)
		}
	}
	if _, err := s.Check(t.Context(), &rpc.CheckRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("empty: %v", err)
	}
	if n := len(s.a.store.View().Allocations); n != 1 {
		t.Errorf("%d allocations", n)
	}
}

func TestStatusIsReadyOnceAndBrokenOnlyWhenTheRoutingStaysAway(t *testing.T) {
	w := newWorld(t)
	w.routing.set(errors.New("no permission"))
	s, _ := w.start()
	ask := func() *rpc.StatusReply {
		r, err := s.Status(t.Context(), &rpc.StatusRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	eventually(t, "the routing fails", func() bool { _, err := s.a.routingBroken(); return err != nil })
	if r := ask(); r.GetReady() || r.GetDataPathBroken() || r.GetMessage() == "" {
		t.Errorf("at first: %v", r)
	}
	w.pass(brokenAfter)
	if r := ask(); !r.GetDataPathBroken() || r.GetMessage() == "" {
		t.Errorf("later: %v", r)
	}
	w.routing.set(nil)
	w.routing.meddle(func(*hostnet.Actual) {}) // what has failed for minutes is tried again with an event, or a minute later
	eventually(t, "ready", func() bool { r := ask(); return r.GetReady() && !r.GetDataPathBroken() })
}

func TestAFullPoolIsNoReasonForStatusToSayNo(t *testing.T) {
	w := newWorld(t)
	w.env["MAX_ENI"], w.env["WARM_ENI_TARGET"] = "1", "0"
	s, _ := w.start()
	w.cloud.mu.Lock()
	w.cloud.failed = errors.New("InsufficientFreeAddressesInSubnet")
	w.cloud.mu.Unlock()
	s.a.ready.Store(true)
	if r, err := s.Status(t.Context(), &rpc.StatusRequest{}); err != nil || !r.GetReady() || r.GetDataPathBroken() {
		t.Errorf("%v, %v", r, err)
	}
}

// TestGcFreesOnlyWhatTwoSourcesCallOver: the list alone ends nothing.
func TestGcFreesOnlyWhatTwoSourcesCallOver(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"), pod("c", "u3"))
	s, _ := w.start()
	var addr []string
	for n, p := range []string{"a", "b", "c"} {
		in := addRequest(p, []string{"u1", "u2", "u3"}[n], "s-"+p)
		in.Attachment.NetworkName = "aws-cni"
		addr = append(addr, mustAdd(t, s, in).GetRegular().GetAddress())
	}
	w.wire(addr[1]) // b is in the kernel
	gc := func(network string, valid ...string) uint32 {
		t.Helper()
		in := &rpc.GcRequest{NetworkName: network}
		for _, v := range valid {
			in.Valid = append(in.Valid, &rpc.Attachment{ContainerId: v, IfName: "eth0"})
		}
		r, err := s.Gc(t.Context(), in)
		if err != nil {
			t.Fatal(err)
		}
		return r.GetFreed()
	}
	if n := gc("aws-cni", "s-c"); n != 0 {
		t.Errorf("%d freed whose ADD may be under way", n)
	}
	w.pass(inFlight + time.Second)
	if n := gc("another", "s-c"); n != 0 {
		t.Errorf("%d freed of another network", n)
	}
	if n := gc("aws-cni", "s-c"); n != 1 {
		t.Errorf("%d freed, want a's", n)
	}
	v := s.a.store.View()
	if len(v.Allocations) != 2 || len(v.Cooling) != 1 || v.Cooling[0].Address.String() != addr[0] {
		t.Errorf("left: %+v", v)
	}
	if _, err := s.Gc(t.Context(), &rpc.GcRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without a network: %v", err)
	}
}

// sweeps is a sweeper that unwires the world.
type sweeps struct {
	w     *world
	mu    sync.Mutex
	swept []store.Key
	addrs map[store.Key]string
	// unwired are the pods that Unwire was asked for, with their addresses; stuck is what it fails with.
	unwired []string
	stuck   error
}

func (s *sweeps) Sweep(_ context.Context, over []store.Key) (removed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range over {
		s.swept = append(s.swept, k)
		s.w.unroute(s.addrs[k])
		s.w.unmark(s.addrs[k])
		removed = append(removed, "delete link of "+k.String())
	}
	return removed, nil
}

func (s *sweeps) Unwire(_ context.Context, pod store.Pod, ifName string, address netip.Addr) (removed []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stuck != nil {
		return nil, s.stuck
	}
	s.unwired = append(s.unwired, fmt.Sprintf("%s %s %s", pod, ifName, address))
	s.w.unroute(address.String())
	return []string{"the link of " + pod.String()}, nil
}

func TestP1WhatNobodyTearsDownIsSweptOnlyLongAfterThePodsEnd(t *testing.T) {
	gone, stays := pod("gone", "u1"), pod("stays", "u2")
	w := newWorld(t, gone, stays)
	fake := &sweeps{w: w, addrs: map[store.Key]string{}}
	w.sweeper = fake
	s, _ := w.start()
	for name, uid := range map[string]string{"gone": "u1", "stays": "u2"} {
		in := addRequest(name, uid, "s-"+name)
		a := mustAdd(t, s, in).GetRegular().GetAddress()
		w.wire(a)
		fake.addrs[store.Key{ContainerID: "s-" + name, IfName: "eth0"}] = a
	}
	w.wire("192.168.1.200") // somebody's whom the agent doesn't know
	since := map[store.Key]time.Time{}
	sweep := func() int {
		t.Helper()
		if err := s.a.sweepSandboxes(t.Context(), since); err != nil {
			t.Fatal(err)
		}
		return len(fake.swept)
	}
	w.pass(inFlight + time.Second)
	if sweep() != 0 {
		t.Error("swept while both pods live")
	}
	w.delete(gone)
	eventually(t, "the watch says so", func() bool { _, ok := s.a.opt.Kube.Pod("default", "gone"); return !ok })
	if sweep() != 0 {
		t.Error("swept at once")
	}
	w.pass(sweepAfter - time.Minute) // the test takes its time, too
	if sweep() != 0 {
		t.Error("swept too early")
	}
	w.pass(2 * time.Minute)
	if sweep() != 1 || fake.swept[0].ContainerID != "s-gone" {
		t.Errorf("swept %v", fake.swept)
	}
	eventually(t, "what it held is free", func() bool { w.reclaim(s); return len(s.a.store.View().Allocations) == 1 })
	if sweep() != 1 {
		t.Errorf("swept %v", fake.swept)
	}
	if left, err := w.routing.Pods(); err != nil || !slices.Contains(left, netip.MustParseAddr("192.168.1.200")) {
		t.Errorf("left %v, %v", left, err)
	}
}

func TestReadinessIsNotedForTheExecutable(t *testing.T) {
	socket := t.TempDir() + "/s"
	if _, err := rpc.SinceReady(socket); err == nil {
		t.Fatal("ready without a stamp")
	}
	w := newWorld(t)
	w.noteReady = func() error { return rpc.NoteReady(socket) }
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	if age, err := rpc.SinceReady(socket); err != nil || age > 10*time.Second {
		t.Errorf("%v, %v", age, err)
	}
}
