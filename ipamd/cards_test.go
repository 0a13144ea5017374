package ipamd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/rpc"
)

// severalPod asks for an interface on each network card.
func severalPod(name, uid string) *corev1.Pod {
	p := pod(name, uid)
	p.Annotations = map[string]string{kube.NICConfigKey: kube.SeveralNICs}
	return p
}

// severalRequest is of an executable that can wire several.
func severalRequest(name, uid, sandbox string) *rpc.AddRequest {
	in := addRequest(name, uid, sandbox)
	in.SeveralInterfaces = true
	return in
}

func waitingFor(a *Agent, card int) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.waiting[card].sandboxes)
}

// severalWorld is an instance with two network cards of eight interfaces each, or another type.
func severalWorld(t *testing.T, typ string, objects ...client.Object) *world {
	t.Helper()
	w := newWorld(t, objects...)
	w.env["ENABLE_MULTI_NIC"], w.typ = "true", typ
	return w
}

// onCardsOf are the ids of the ENIs on a network card.
func (c *cloud) onCard(card int) (ids []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for id, e := range c.enis {
		if e.device >= 0 && e.card == card {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// rests lets time pass until ok, as long as the pool has something to give back.
func (w *world) rests(s service, what string, ok func() bool) {
	w.t.Helper()
	eventually(w.t, what, func() bool {
		w.pass(31 * time.Second)
		s.a.changed.Fire()
		return ok()
	})
}

func TestAPodThatAsksForSeveralInterfacesHasOneOfEachNetworkCard(t *testing.T) {
	w := severalWorld(t, "c6in.32xlarge", severalPod("a", "ua"), pod("b", "ub"))
	w.env["ANNOTATE_POD_IP"] = "true"
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	if one := mustAdd(t, s, severalRequest("b", "ub", "sb")); len(one.GetFurther()) > 0 || one.GetRegular().GetNetworkCard() != 0 {
		t.Errorf("a pod that asks for nothing: %v", one)
	}
	if ids := w.cloud.onCard(1); len(ids) > 0 {
		t.Errorf("%v are kept ahead on the second card", ids)
	}
	r := mustAdd(t, s, severalRequest("a", "ua", "sa"))
	if f := r.GetFurther(); len(f) != 1 || f[0].GetNetworkCard() != 1 || f[0].GetDeviceNumber() != 0 || f[0].GetRouteTable() != 0 || r.GetRegular().GetNetworkCard() != 0 {
		t.Fatalf("answered %v", r)
	}
	second := r.GetFurther()[0]
	both := r.GetRegular().GetAddress() + "," + second.GetAddress()
	w.says("both addresses", "a", &both)
	w.routing.mu.Lock()
	slot := hostnet.Slot{Card: 1, Device: 0}
	if !slices.ContainsFunc(w.routing.actual.Routes, func(r hostnet.Route) bool { return r.Table == 10100 && r.Dst.Bits() == 0 }) ||
		!slices.ContainsFunc(w.routing.actual.Rules, func(r hostnet.Rule) bool { return r.Table == 10100 && r.Mark == slot.Mark() }) {
		t.Errorf("no way out by the second card: %v, %v", w.routing.actual.Routes, w.routing.actual.Rules)
	}
	w.routing.mu.Unlock()
	kill()
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if again := mustAdd(t, s, severalRequest("a", "ua", "sa")); again.GetFurther()[0].GetAddress() != second.GetAddress() || again.GetRegular().GetAddress() != r.GetRegular().GetAddress() {
		t.Errorf("after the restart %v, before %v", again, r)
	}
	if _, err := s.Del(t.Context(), delRequest("sa")); err != nil {
		t.Fatal(err)
	}
	if n := len(s.a.store.View().Cooling); n != 2 {
		t.Errorf("%d addresses rest, want both", n)
	}
	w.rests(s, "the second card's ENI is given back", func() bool { return len(w.cloud.onCard(1)) == 0 })
	if n := len(w.cloud.onCard(0)); n == 0 {
		t.Error("the first card's went, too")
	}
}

func TestABurstOfPodsWithSeveralInterfacesIsOneCallForEachCard(t *testing.T) {
	var objects []client.Object
	for i := range 20 {
		objects = append(objects, severalPod(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i)))
	}
	w := severalWorld(t, "p4d.24xlarge", objects...)
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	goOn := w.stop() // a burst is as long as the test's goroutines are over it
	var wg sync.WaitGroup
	var mu sync.Mutex
	seen := map[string]bool{}
	for i := range 20 {
		wg.Go(func() {
			r, err := add(t, s, severalRequest(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), fmt.Sprintf("s%d", i)))
			if err != nil || len(r.GetFurther()) != 3 {
				t.Errorf("%v, %v", r, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			for card, f := range append([]*rpc.RegularInterface{r.GetRegular()}, r.GetFurther()...) {
				if seen[f.GetAddress()] || int(f.GetNetworkCard()) != card {
					t.Errorf("%v is a second pod's, or not of card %d", f, card)
				}
				seen[f.GetAddress()] = true
			}
		})
	}
	eventually(t, "all pods to wait", func() bool { return waitingFor(s.a, 3) == 20 })
	goOn()
	wg.Wait()
	w.cloud.mu.Lock()
	defer w.cloud.mu.Unlock()
	for card := 1; card <= 3; card++ {
		if n := w.cloud.calls[card]; n != 1 {
			t.Errorf("%d calls for 20 pods on card %d, want 1", n, card)
		}
	}
}

func TestWhoCanNotHaveSeveralInterfacesIsToldSo(t *testing.T) {
	both, odd := branchPod("both", "u1", 7), pod("odd", "u2")
	both.Annotations[kube.NICConfigKey] = kube.SeveralNICs
	odd.Annotations = map[string]string{kube.NICConfigKey: "all"}
	w := severalWorld(t, "c6in.32xlarge", both, odd, severalPod("a", "u3"))
	w.env["ENABLE_POD_ENI"] = "true"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	_, err := add(t, s, severalRequest("both", "u1", "s1"))
	wantCode(t, err, codes.FailedPrecondition, "default/both", "security groups", kube.NICConfigKey)
	if r := mustAdd(t, s, severalRequest("odd", "u2", "s2")); len(r.GetFurther()) > 0 {
		t.Errorf("%v", r)
	}
	eventually(t, "the pod's event", func() bool {
		e := w.events("NICConfigUnknown")
		return len(e) == 1 && strings.Contains(e[0].Message, kube.SeveralNICs) && e[0].InvolvedObject.Name == "odd"
	})
	_, err = add(t, s, addRequest("a", "u3", "s3"))
	wantCode(t, err, codes.FailedPrecondition, "default/a", "aws-cni")
	mustAdd(t, s, severalRequest("a", "u3", "s4"))
	_, err = add(t, s, addRequest("a", "u3", "s4"))
	wantCode(t, err, codes.FailedPrecondition, "default/a", "aws-cni")
}

func TestAnAddressOfEveryCardOrNone(t *testing.T) {
	w := severalWorld(t, "c6in.32xlarge", severalPod("a", "ua"))
	w.env["MAX_ENI"] = "1"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	_, err := add(t, s, severalRequest("a", "ua", "sa"))
	wantCode(t, err, codes.ResourceExhausted, "default/a", "network card 1", "MAX_ENI")
	if v := s.a.store.View(); len(v.Allocations)+len(v.Cooling) > 0 || waitingFor(s.a, 0)+waitingFor(s.a, 1) > 0 {
		t.Errorf("something is held: %+v", v)
	}
}

// Each of three further cards wants an ENI at the same moment.
func TestAllCardsTogetherHaveNoMoreENIsThanMAXENIAndTheTrunksSlotIsKept(t *testing.T) {
	for _, tt := range []struct {
		podENI, most string
		want         int
	}{{"false", "3", 3}, {"true", "4", 3}} {
		w := severalWorld(t, "p4d.24xlarge", severalPod("a", "ua"))
		w.env["MAX_ENI"], w.env["ENABLE_POD_ENI"], w.env["WARM_ENI_TARGET"] = tt.most, tt.podENI, "0"
		s, kill := w.start()
		eventually(t, "ready", s.a.ready.Load)
		_, err := add(t, s, severalRequest("a", "ua", "sa"))
		wantCode(t, err, codes.ResourceExhausted, "default/a", "network card 3", "MAX_ENI")
		n := 0
		for card := range 4 {
			n += len(w.cloud.onCard(card))
		}
		if n > tt.want {
			t.Errorf("MAX_ENI %s, ENABLE_POD_ENI %s: %d ENIs, want %d at most", tt.most, tt.podENI, n, tt.want)
		}
		kill()
	}
}

func TestOnlyCardsThatCanHaveAnENIForPodsCount(t *testing.T) {
	w := severalWorld(t, "p5.48xlarge", severalPod("a", "ua")) // 32 cards of two interfaces
	efa := func(card, device int) {
		e := w.cloud.add(device, 0, false)
		e.card, e.kind, e.addresses = card, types.NetworkInterfaceTypeEfaOnly, nil
	}
	efa(1, 0)
	efa(1, 1)
	efa(2, 0)
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "all cards but the first full one", func() bool {
		cards, known := s.a.severalCards()
		return known && len(cards) == 31 && !slices.Contains(cards, 1) && slices.Contains(cards, 2)
	})
}

func TestOnAnInstanceOfOneCardEveryPodHasOneInterface(t *testing.T) {
	w := severalWorld(t, "m5.large", severalPod("a", "ua"))
	s, _ := w.start()
	if r := mustAdd(t, s, severalRequest("a", "ua", "sa")); len(r.GetFurther()) > 0 || r.GetRegular() == nil {
		t.Errorf("%v", r)
	}
}

func TestWithoutTheModeOtherCardsAreLeftAloneAndWhatPodsHoldThereStays(t *testing.T) {
	w := severalWorld(t, "c6in.32xlarge", severalPod("a", "ua"), severalPod("b", "ub"))
	s, kill := w.start()
	r := mustAdd(t, s, severalRequest("a", "ua", "sa"))
	kill()
	somebodys := w.cloud.add(1, 2, false) // MANAGE_UNTAGGED_ENI is of the first card
	somebodys.card = 1
	w.env["ENABLE_MULTI_NIC"] = "false"
	s, _ = w.start()
	if one := mustAdd(t, s, severalRequest("b", "ub", "sb")); len(one.GetFurther()) > 0 {
		t.Errorf("the mode is off: %v", one)
	}
	eventually(t, "the pod's event", func() bool { return len(w.events("NICConfigOff")) == 1 })
	w.pass(20 * time.Minute)
	s.a.changed.Fire()
	again := mustAdd(t, s, severalRequest("a", "ua", "sa"))
	if len(again.GetFurther()) != 1 || again.GetFurther()[0].GetAddress() != r.GetFurther()[0].GetAddress() {
		t.Fatalf("a running pod lost its second interface: %v", again)
	}
	held := netip.MustParseAddr(r.GetFurther()[0].GetAddress())
	w.routing.mu.Lock()
	if _, ok := w.routing.actual.Marks.Devices[netip.PrefixFrom(held, 32)]; !ok {
		t.Errorf("its way out is gone: %v", w.routing.actual.Marks)
	}
	w.routing.mu.Unlock()
	if _, err := s.Del(context.Background(), delRequest("sa")); err != nil {
		t.Fatal(err)
	}
	w.rests(s, "the agent's own ENI is given back, and somebody else's stays", func() bool {
		return slices.Equal(w.cloud.onCard(1), []string{somebodys.id})
	})
}
