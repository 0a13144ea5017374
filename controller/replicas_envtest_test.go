//go:build envtest

package controller_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/controller/admission"
)

func electing(o *controller.Options) { o.LeaderElect, o.Lease = true, 2*time.Second }

func TestOneReplicaActsAndItsDeathHandsOver(t *testing.T) {
	first, stopFirst := start(t, 0, electing)
	namespace(t, "lead")
	id := launch(t, "lead", "m5.large", w.subnet)
	ready(t, "lead", id, 9)
	second, stopSecond := start(t, 0, electing)
	p := pod(t, "lead", "p1", "lead")
	value := annotated(t, p)
	if calls := second.effects(); len(calls) > 0 {
		t.Fatalf("the replica that doesn't lead acts: %v", calls)
	}
	// In the middle of its work, as seen from outside: a pod is there, its branch ENI is not.
	q := pod(t, "lead", "p2", "lead")
	first.kill()
	annotated(t, q)
	if err := stopFirst(); err == nil {
		t.Error("the leader that was cut off ended without an error")
	}
	if again := annotated(t, p); again != value {
		t.Errorf("annotation changed from %s to %s", value, again)
	}
	branches(t, id, 2)
	invariants(t, id)
	if trunks, _ := inEC2(t, id); trunks != 1 {
		t.Errorf("%d trunks", trunks)
	}
	// A leader that ends orderly gives the Lease back: its successor need not wait for it to run out.
	start(t, 0, electing)
	must(t, stopSecond())
	began := time.Now()
	annotated(t, pod(t, "lead", "p3", "lead"))
	t.Logf("orderly hand-over in %v", time.Since(began))
	branches(t, id, 3)
}

func hosted() *admissionregistrationv1.ValidatingWebhookConfiguration {
	return &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: admission.HostedValidatingName}}
}

func standsAside(t *testing.T, what string, k *killer, stop func() error) {
	t.Helper()
	select {
	case <-k.ended:
	case <-time.After(patience):
		t.Fatalf("%s did not end", what)
	}
	if err := stop(); !errors.Is(err, admission.ErrHosted) || !strings.Contains(err.Error(), admission.HostedValidatingName) {
		t.Errorf("%s ended with: %v", what, err)
	}
}

func TestItStandsAsideWhereAHostedControlPlaneIs(t *testing.T) {
	namespace(t, "hosted")
	_, one := serving(t)
	_, two := serving(t)
	leader, stopLeader := start(t, 0, func(o *controller.Options) { one(o); electing(o) })
	hooked(t, "hosted")
	follower, stopFollower := start(t, 0, func(o *controller.Options) { two(o); electing(o) })
	h := hosted()
	must(t, w.admin.Create(t.Context(), h))
	standsAside(t, "the leader", leader, stopLeader)
	standsAside(t, "the replica", follower, stopFollower)
	told(t, h, "HostedControlPlane", admission.HostedValidatingName, "stands aside")
	for name, o := range map[string]client.Object{admission.MutatingName: &admissionregistrationv1.MutatingWebhookConfiguration{}, admission.ValidatingName: &admissionregistrationv1.ValidatingWebhookConfiguration{}} {
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: name}, o); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("%s is still there: %v", name, err)
		}
	}
	must(t, w.admin.Delete(t.Context(), h))
	// It is there before the controller, twice: a Deployment starts it again and again.
	h = hosted()
	must(t, w.admin.Create(t.Context(), h))
	for n := range 2 {
		// Of a run that ended before it could take it away, or of a backup.
		must(t, w.admin.Create(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: admission.ValidatingName}}))
		k, stop := start(t, 0, one)
		standsAside(t, fmt.Sprint("restart ", n), k, stop)
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: admission.ValidatingName}, &admissionregistrationv1.ValidatingWebhookConfiguration{}); client.IgnoreNotFound(err) != nil || err == nil {
			t.Errorf("%s is there, and nobody answers for it: %v", admission.ValidatingName, err)
		}
		calls := slices.DeleteFunc(k.effects(), func(c string) bool {
			return strings.HasPrefix(c, "DELETE ") && (strings.HasSuffix(c, "/"+admission.MutatingName) || strings.HasSuffix(c, "/"+admission.ValidatingName))
		})
		if len(calls) > 0 {
			t.Errorf("it acted before it stood aside: %v", calls)
		}
	}
	if n := len(events(t, h)); n != 1 {
		t.Errorf("%d events on one configuration", n)
	}
}
