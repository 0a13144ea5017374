package ipamd

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/policy"
)

// The policy that selects green pods, and a CNINode as our controller makes it.
func guarded(name string) []client.Object {
	return []client.Object{
		&v1beta1.SecurityGroupPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: "u-policy", Generation: 1, CreationTimestamp: metav1.Unix(100, 0)},
			Spec:       v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "green"}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-1"}}},
		},
		&cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName, Annotations: map[string]string{cninodev1.StampsAnnotation: cninodev1.StampsForm}}},
	}
}

func made(p *corev1.Pod, app, stamp string) *corev1.Pod {
	p.CreationTimestamp, p.Labels = metav1.Unix(200, 0), map[string]string{"app": app}
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	if stamp != "" {
		p.Annotations[policy.StampKey] = stamp
	}
	return p
}

const stampOfGreen = `[{"uid":"u-policy","generation":1}]`

// The webhook was away (its failurePolicy is Ignore) when green was created: it does not ask for a branch ENI.
func TestP2APodThatTheWebhookMissedIsRefusedAndWiredOnceItIsCreatedAgain(t *testing.T) {
	w := newWorld(t, append(guarded("allow-db"), made(pod("green", "u1"), "green", ""), made(pod("red", "u3"), "red", ""))...)
	w.env["ENABLE_POD_ENI"] = "true"
	w.ledgers.Store(true)
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "the CNINode", s.a.opt.Kube.Stamps)
	w.cloud.attachTrunk()
	_, err := add(t, s, addRequest("green", "u1", "s1"))
	wantCode(t, err, codes.FailedPrecondition, "default/green", "default/allow-db", "mpod.vpc.k8s.aws", "delete the pod")
	eventually(t, "the pod's event", func() bool {
		e := w.events("PodNotWired")
		return len(e) == 1 && e[0].InvolvedObject.Name == "green" && strings.Contains(e[0].Message, "delete the pod")
	})
	if n := len(s.a.store.View().Allocations); n != 0 {
		t.Fatalf("%d allocations", n)
	}
	if r := mustAdd(t, s, addRequest("red", "u3", "s3")); r.GetRegular() == nil {
		t.Errorf("a pod that no policy selects got %v", r)
	}
	// Deleted, and created again with the webhook there.
	ctx := context.Background()
	if err := w.api.Delete(ctx, pod("green", "u1")); err != nil {
		t.Fatal(err)
	}
	if err := w.api.Create(ctx, made(branchPod("green", "u2", 7), "green", stampOfGreen)); err != nil {
		t.Fatal(err)
	}
	w.setLedger(slot(7, "u2", "green", ledgerv1.Bound))
	if r := mustAdd(t, s, addRequest("green", "u2", "s2")); r.GetBranch().GetVlanId() != 7 {
		t.Errorf("answered %v", r)
	}
}

func TestP2ABranchENIWithoutThePoliciesGroupsIsNotWired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, append(guarded("allow-db"), made(branchPod("green", "u1", 7), "green", stampOfGreen))...)
		w.virtual()
		w.env["ENABLE_POD_ENI"] = "true"
		other := slot(7, "u1", "green", ledgerv1.Bound)
		other.SecurityGroups = []string{"sg-2"}
		w.setLedger(other)
		s, _ := w.start()
		eventually(t, "ready", s.a.ready.Load)
		w.cloud.attachTrunk()
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.Add(ctx, addRequest("green", "u1", "s1"))
		wantCode(t, err, codes.DeadlineExceeded, "default/green", "sg-1", "default/allow-db")
		w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
		mustAdd(t, s, addRequest("green", "u1", "s1"))
	})
}

func TestPodsThatPoliciesDoNotConcernCostNoQuestion(t *testing.T) {
	ran := made(pod("ran", "u2"), "green", "")
	ran.Status.PodIP = "192.168.1.12"
	stamped := made(pod("stamped", "u3"), "red", "[]")
	w := newWorld(t, append(guarded("allow-db"), made(pod("red", "u1"), "red", ""), ran, stamped)...)
	if err := w.api.Create(context.Background(), &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "by-account", UID: "u-account", CreationTimestamp: metav1.Unix(100, 0)},
		Spec: v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "blue"}},
			ServiceAccountSelector: &metav1.LabelSelector{}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-1"}}},
	}); err != nil {
		t.Fatal(err)
	}
	w.env["ENABLE_POD_ENI"] = "true"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "the trunk's request", func() bool { has, _ := s.a.opt.Kube.HasFeature(podeni.Feature); return has })
	eventually(t, "the watch of policies", func() bool { _, current, err := s.a.opt.Kube.Policies("default"); return err == nil && current })
	before := w.asked.Load()
	for name, uid := range map[string]string{"red": "u1", "ran": "u2", "stamped": "u3"} {
		if r := mustAdd(t, s, addRequest(name, uid, "s"+uid)); r.GetRegular() == nil {
			t.Errorf("%s got %v", name, r)
		}
	}
	if n := w.asked.Load() - before; n > 0 {
		t.Errorf("%d questions to the API server", n)
	}
}

func TestPoliciesThatMayNotBeReadKeepTheNodeFromReadinessAndAreSaid(t *testing.T) {
	w := newWorld(t, guarded("allow-db")...)
	w.env["ENABLE_POD_ENI"] = "true"
	w.denied.Store(true)
	s, _ := w.start()
	eventually(t, "the node's event", func() bool {
		e := w.events("PoliciesNotReadable")
		return len(e) > 0 && strings.Contains(e[0].Message, "ClusterRole")
	})
	if r, err := s.Status(t.Context(), nil); err != nil || r.GetReady() {
		t.Fatalf("%v, %v", r, err)
	}
	w.denied.Store(false)
	eventually(t, "ready with the role", s.a.ready.Load)
}

func TestP23ATrunkThatDoesNotComeIsSaidWithItsRemedy(t *testing.T) {
	w := newWorld(t, guarded("allow-db")...)
	w.env["ENABLE_POD_ENI"] = "true"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "the trunk's request", func() bool { has, _ := s.a.opt.Kube.HasFeature(podeni.Feature); return has })
	if n := len(w.events("TrunkMissing")); n > 0 {
		t.Fatal("said at once")
	}
	w.pass(podeni.TrunkLate)
	s.a.changed.Fire()
	eventually(t, "the node's event", func() bool {
		e := w.events("TrunkMissing")
		return len(e) == 1 && strings.Contains(e[0].Message, "AmazonEKSVPCResourceController")
	})
	if n := s.counted("TrunkMissing"); n == 0 {
		t.Error("no metric tells of it")
	}
}
