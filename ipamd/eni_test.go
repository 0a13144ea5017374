package ipamd

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"

	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// do runs f with the cloud's lock held.
func (c *cloud) do(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

func (c *cloud) get(f func() bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return f()
}

// quiet lets time pass in steps in which nothing is to happen, and the agent look after each.
func (w *world) quiet(s service, steps int, each time.Duration) {
	for range steps {
		w.pass(each)
		s.a.changed.Fire()
		time.Sleep(20 * time.Millisecond)
	}
}

// passes lets time pass until ok, now and then: what the agent is at when the first of it has passed may begin its pause after that.
// It needs some time of its own in between.
func (w *world) passes(s service, d time.Duration, what string, ok func() bool) {
	w.t.Helper()
	var last time.Time
	eventually(w.t, what, func() bool {
		if time.Since(last) > 500*time.Millisecond {
			w.pass(d)
			last = time.Now()
		}
		s.a.changed.Fire()
		return ok()
	})
}

// counted is how many errors of that name the agent's metrics tell of.
func (s service) counted(name string) float64 {
	r := prometheus.NewRegistry()
	r.MustRegister(s.a.metrics.errors)
	families, err := r.Gather()
	if err != nil {
		panic(err)
	}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			for _, l := range m.GetLabel() {
				if l.GetValue() == name {
					return m.GetCounter().GetValue()
				}
			}
		}
	}
	return 0
}

// said says whether the agent has sent an event for this reason that holds the words.
func (w *world) said(reason string, words ...string) bool {
	var all corev1.EventList
	if err := w.api.List(context.Background(), &all); err != nil {
		w.t.Fatal(err)
	}
next:
	for _, e := range all.Items {
		for _, word := range words {
			if e.Reason != reason || !strings.Contains(e.Message, word) {
				continue next
			}
		}
		return e.Reason == reason || len(words) > 0
	}
	return false
}

// TestP28AFailedSweepIsRepeated: what is left behind would stay until the agent is restarted.
func TestP28AFailedSweepIsRepeated(t *testing.T) {
	w := newWorld(t)
	w.cloud.sweepFailed = errors.New("EC2 is away")
	left := w.cloud.add(-1, 0, false)
	left.description = "aws-K8S-" + instanceID
	s, _ := w.start()
	eventually(t, "the sweep was tried", func() bool { return w.cloud.get(func() bool { return w.cloud.sweeps > 0 }) })
	w.cloud.do(func() {
		if w.cloud.sweepFailed = nil; w.cloud.enis[left.id] == nil {
			t.Error("deleted by a sweep that failed")
		}
	})
	w.passes(s, time.Minute, "the left-over is gone", func() bool {
		return w.cloud.get(func() bool { return w.cloud.enis[left.id] == nil })
	})
}

func TestLeftOversStayWhereTheirCleanUpIsTurnedOff(t *testing.T) {
	w := newWorld(t)
	w.env["DISABLE_LEAKED_ENI_CLEANUP"] = "true"
	left := w.cloud.add(-1, 0, false)
	left.description = "aws-K8S-" + instanceID
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.quiet(s, 5, time.Hour)
	w.cloud.do(func() {
		if w.cloud.sweeps > 0 || w.cloud.enis[left.id] == nil {
			t.Errorf("looked for %d times; there: %v", w.cloud.sweeps, w.cloud.enis[left.id] != nil)
		}
	})
}

// The instance type would have eight.
func TestTheENIsOfOneCardAreNoMoreThanMAXENI(t *testing.T) {
	for _, tt := range []struct {
		podENI string
		want   int // the trunk's slot is left out
	}{{"false", 2}, {"true", 1}} {
		w := newWorld(t)
		w.typ, w.env["MAX_ENI"], w.env["ENABLE_POD_ENI"], w.env["WARM_ENI_TARGET"] = "m5.4xlarge", "2", tt.podENI, "5"
		s, stop := w.start()
		eventually(t, "ready", s.a.ready.Load)
		eventually(t, "as many ENIs as may be", func() bool { return len(w.cloud.onCard(0)) == tt.want })
		w.quiet(s, 3, 10*time.Minute)
		if ids := w.cloud.onCard(0); len(ids) != tt.want {
			t.Errorf("ENABLE_POD_ENI %s: %v, want %d", tt.podENI, ids, tt.want)
		}
		stop()
	}
}

// TestAFullInstanceHasNoSlotForATrunkAndSaysSo: somebody else has attached what the type can have.
func TestAFullInstanceHasNoSlotForATrunkAndSaysSo(t *testing.T) {
	w := newWorld(t)
	w.env["ENABLE_POD_ENI"] = "true"
	var somebodys []string
	for device := 1; device <= 2; device++ { // an m5.large has three
		e := w.cloud.add(device, 0, false)
		e.tags = []types.Tag{{Key: awssdk.String("node.k8s.amazonaws.com/no_manage"), Value: awssdk.String("true")}}
		somebodys = append(somebodys, e.id)
	}
	if err := w.api.Create(context.Background(), &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}); err != nil {
		t.Fatal(err)
	}
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "the node's event, with the remedy", func() bool { return w.said("NoSlotForTrunk", "m5.large", "detach an ENI", "MAX_ENI") })
	if has, err := s.a.opt.Kube.HasFeature(podeni.Feature); has || err != nil {
		t.Errorf("a trunk was asked for: %v, %v", has, err)
	}
	if n := s.counted("NoSlotForTrunk"); n == 0 {
		t.Error("no metric tells of it")
	}
	w.cloud.do(func() { delete(w.cloud.enis, somebodys[1]) })
	s.a.links.Fire()
	eventually(t, "the trunk's request, once there is room", func() bool { has, _ := s.a.opt.Kube.HasFeature(podeni.Feature); return has })
}

// TestAnENIThatIsDetachedBeforeItIsSeenGivesItsSlotBack: an m5.large has room for two secondary ENIs.
func TestAnENIThatIsDetachedBeforeItIsSeenGivesItsSlotBack(t *testing.T) {
	w := newWorld(t)
	w.join, w.env["WARM_ENI_TARGET"] = 20*time.Millisecond, "2"
	w.cloud.hidden = true
	s, _ := w.start()
	attached := func() (ids []string) {
		w.cloud.do(func() {
			for id, e := range w.cloud.enis {
				if e.device > 0 && e.hidden {
					ids = append(ids, id)
				}
			}
		})
		return ids
	}
	joining := func() int {
		s.a.mu.Lock()
		defer s.a.mu.Unlock()
		return len(s.a.joining)
	}
	// One does not show up, so a second one is tried, and then all slots are taken.
	eventually(t, "two ENIs are attached that nothing shows", func() bool { return len(attached()) == 2 && joining() == 2 })
	// As long as EC2 has them, they hold their slots, whatever time passes.
	for range 3 {
		asked := w.cloud.described()
		w.pass(time.Hour)
		s.a.changed.Fire()
		eventually(t, "EC2 is asked for both", func() bool { return w.cloud.described() >= asked+2 })
	}
	if len(attached()) != 2 || joining() != 2 {
		t.Fatalf("attached %v, joining %d", attached(), joining())
	}
	w.cloud.do(func() {
		w.cloud.hidden = false
		for _, e := range w.cloud.enis {
			if e.hidden {
				e.device = -1 // by hand
			}
		}
	})
	w.pass(time.Hour)
	eventually(t, "another one is there", func() bool {
		s.a.changed.Fire()
		return joining() == 0 && len(s.a.inventory.ENIs()) == 2
	})
}

func x9() types.InstanceTypeInfo {
	return types.InstanceTypeInfo{InstanceType: "x9.huge", NetworkInfo: &types.NetworkInfo{
		MaximumNetworkInterfaces: awssdk.Int32(4), Ipv4AddressesPerInterface: awssdk.Int32(10), DefaultNetworkCardIndex: awssdk.Int32(0),
	}}
}

// TestP23AnUnknownTypeRunsRegularPodsAndSaysWhatItLacks: new types appear each month.
func TestP23AnUnknownTypeRunsRegularPodsAndSaysWhatItLacks(t *testing.T) {
	cninode := &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	w := newWorld(t, pod("p", "u"), branchPod("b", "ub", 1), cninode)
	w.typ, w.env["ENABLE_POD_ENI"] = "x9.huge", "true"
	w.cloud.types = []types.InstanceTypeInfo{x9()}
	s, _ := w.start()
	if r := mustAdd(t, s, addRequest("p", "u", "s1")); r.GetRegular() == nil {
		t.Fatalf("%v", r)
	}
	eventually(t, "ENIs are kept warm by the limits that EC2 told", func() bool { return len(s.a.inventory.ENIs()) > 1 })
	eventually(t, "the events", func() bool {
		return w.said("UnknownInstanceType", "x9.huge", "use a version that knows the type") && w.said("TrunkUnsupported", "x9.huge", "not known to this version")
	})
	_, err := add(t, s, addRequest("b", "ub", "s2"))
	wantCode(t, err, codes.FailedPrecondition, "x9.huge")
	if w.labelled() {
		t.Error("labelled")
	}
}

// TestP23AnUnknownTypeThatEC2DoesNotTellOfLivesOnWhatIsAttached, also while EC2 is away.
func TestP23AnUnknownTypeThatEC2DoesNotTellOfLivesOnWhatIsAttached(t *testing.T) {
	w := newWorld(t, pod("p", "u"))
	w.typ = "x9.huge"
	w.cloud.add(1, 3, false) // of an earlier run
	idle := w.cloud.add(2, 3, false)
	s, _ := w.start()
	if r := mustAdd(t, s, addRequest("p", "u", "s1")); r.GetRegular() == nil {
		t.Fatalf("%v", r)
	}
	eventually(t, "EC2 was asked", func() bool { return w.cloud.get(func() bool { return w.cloud.typesAsked > 0 }) })
	if w.cloud.do(func() {
		if len(w.cloud.enis) != 3 || w.cloud.enis[idle.id].device != 2 {
			t.Errorf("ENIs came or went: %v", w.cloud.enis)
		}
		w.cloud.types = []types.InstanceTypeInfo{x9()}
	}); s.a.limitsKnown() {
		t.Error("limits from nowhere")
	}
	eventually(t, "the limits are known once EC2 answers", s.a.limitsKnown)
}
