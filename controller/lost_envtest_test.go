//go:build envtest

package controller_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/policy"
)

// lose takes a ledger away, past its finalizer, as a restored backup would.
func lose(t *testing.T, id string) {
	t.Helper()
	l := ledgerOf(t, id)
	must(t, w.admin.Patch(t.Context(), l, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))))
	must(t, client.IgnoreNotFound(w.admin.Delete(t.Context(), l)))
}

func podOf(t *testing.T, namespace, name string) *corev1.Pod {
	t.Helper()
	var p corev1.Pod
	must(t, w.admin.Get(t.Context(), keyOf(namespace, name), &p))
	return &p
}

func node(t *testing.T, name string) *corev1.Node {
	t.Helper()
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", name), &n))
	return &n
}

func tagged(eni, key, value string) *ec2.CreateTagsInput {
	return &ec2.CreateTagsInput{Resources: []string{eni}, Tags: []ec2types.Tag{{Key: awssdk.String(key), Value: awssdk.String(value)}}}
}

func TestALostLedgerTakesNothingFromRunningPods(t *testing.T) {
	_, stop := start(t, 0, nil)
	namespace(t, "lost")
	id := launch(t, "lost", "m5.large", w.subnet)
	ready(t, "lost", id, 9)
	values := map[string]string{}
	for _, name := range []string{"a", "b", "c"} {
		values[name] = annotated(t, pod(t, "lost", name, "lost"))
	}
	must(t, stop())
	lose(t, id)
	// One comes while the ledger is lost. It may meet the others' VLAN ids first.
	start(t, 0, func(o *controller.Options) { o.SweepEvery = 100 * time.Millisecond })
	d := pod(t, "lost", "d", "lost")
	annotated(t, d)
	eventually(t, "the running pods are adopted", func() error {
		l, bound := ledgerOf(t, id), map[string]bool{}
		for _, s := range l.Spec.Slots {
			bound[s.PodName] = s.State == ledgerv1.Bound && (s.PodName == "d" || strings.Contains(values[s.PodName], fmt.Sprintf(`"eniId":%q`, s.ENIID)))
		}
		if !bound["a"] || !bound["b"] || !bound["c"] || !bound["d"] {
			return fmt.Errorf("%+v", l.Spec.Slots)
		}
		return nil
	})
	time.Sleep(long)
	for name, value := range values {
		p := podOf(t, "lost", name)
		if got := p.Annotations[policy.Resource]; got != value {
			t.Errorf("%s: annotation changed from %s to %s", name, value, got)
		}
	}
	branches(t, id, 4)
	invariants(t, id)
}

func TestTheSweepSparesALivingPodsENI(t *testing.T) {
	_, stop := start(t, 0, nil)
	namespace(t, "spared")
	id := launch(t, "spared", "m5.large", w.subnet)
	ready(t, "spared", id, 9)
	p := pod(t, "spared", "p", "spared")
	annotated(t, p)
	must(t, stop())
	lose(t, id)
	// Its node is gone from the API server, so nobody adopts it.
	n := node(t, "spared")
	must(t, w.admin.Delete(t.Context(), n))
	start(t, 0, func(o *controller.Options) { o.SweepEvery = 100 * time.Millisecond })
	time.Sleep(2*time.Second + long) // the tag's date has whole seconds
	branches(t, id, 1)
	remove(t, p)
	branches(t, id, 0)
}

func TestALedgerThatIsDeletedStaysUntilItsInstanceIsGone(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "deleted")
	id := launch(t, "deleted", "m5.large", w.subnet)
	ready(t, "deleted", id, 9)
	annotated(t, pod(t, "deleted", "a", "deleted"))
	must(t, w.admin.Delete(t.Context(), ledgerOf(t, id)))
	annotated(t, pod(t, "deleted", "b", "deleted"))
	branches(t, id, 2)
	invariants(t, id)
	must(t, w.admin.Delete(t.Context(), node(t, "deleted")))
	terminate(t, id)
	cleared(t, id)
}

func TestAnAnnotationThatNamesAnothersENIIsNotReplaced(t *testing.T) {
	_, stop := start(t, 0, nil)
	namespace(t, "unknown")
	id := launch(t, "unknown", "m5.large", w.subnet)
	ready(t, "unknown", id, 9)
	p := pod(t, "unknown", "p", "unknown")
	value := annotated(t, p)
	eni := ledgerOf(t, id).Spec.Slots[0].ENIID
	must(t, stop())
	lose(t, id)
	_, err := w.ec2.CreateTags(t.Context(), tagged(eni, "branchline.dev/pod-uid", "another"))
	must(t, err)
	start(t, 0, nil)
	told(t, p, "BranchENIUnknown", eni, "delete the pod")
	time.Sleep(long)
	if got := podOf(t, "unknown", "p").Annotations[policy.Resource]; got != value {
		t.Errorf("annotation changed from %s to %s", value, got)
	}
	branches(t, id, 1)
}

func TestAnAnnotationOfAnotherInstanceIsReplaced(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "renewed")
	old := launch(t, "renewed", "m5.large", w.subnet)
	ready(t, "renewed", old, 9)
	p := pod(t, "renewed", "p", "renewed")
	value := annotated(t, p)
	must(t, w.admin.Delete(t.Context(), node(t, "renewed")))
	terminate(t, old)
	fresh := launch(t, "renewed", "m5.large", w.subnet)
	ready(t, "renewed", fresh, 9)
	cleared(t, old)
	eventually(t, "the pod has a branch ENI of its new instance", func() error {
		got := podOf(t, "renewed", "p").Annotations[policy.Resource]
		if l := ledgerOf(t, fresh); got == value || len(l.Spec.Slots) == 0 || !strings.Contains(got, l.Spec.Slots[0].ENIID) || l.Spec.Slots[0].ENIID == "" {
			return fmt.Errorf("annotation %s, ledger %+v", got, l.Spec)
		}
		return nil
	})
}
