//go:build envtest

package controller_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1beta1"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

func selecting(namespace, name string, selector, account *metav1.LabelSelector, groups ...string) *v1beta1.SecurityGroupPolicy {
	return &v1beta1.SecurityGroupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec: v1beta1.SecurityGroupPolicySpec{PodSelector: selector, ServiceAccountSelector: account, SecurityGroups: v1beta1.GroupIDs{Groups: groups}}}
}

func securityGroup(t *testing.T, name string) string {
	t.Helper()
	id, err := w.account.Group(t.Context(), w.vpc, name, name)
	must(t, err)
	return id
}

// hasGroups compares the groups of an instance's only branch ENI.
func hasGroups(t *testing.T, id string, want ...string) {
	t.Helper()
	branches(t, id, 1)
	_, b := inEC2(t, id)
	var got []string
	for _, g := range b[0].Groups {
		got = append(got, *g.GroupId)
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("groups %v, want %v", got, want)
	}
}

var everyPod = &metav1.LabelSelector{}

func TestACorrectedPolicyHoldsForAPodThatIsHeldUpByIt(t *testing.T) {
	start(t, 0, nil)
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "typo"}}))
	id := launch(t, "typo", "m5.large", w.subnet)
	ready(t, "typo", id, 9)
	wrong := selecting("typo", "p", everyPod, nil, "sg-0123456789abcdef0")
	must(t, w.admin.Create(t.Context(), wrong))
	p := pod(t, "typo", "p", "typo")
	told(t, p, "SecurityGroupNotFound", "groupIds")
	must(t, w.admin.Patch(t.Context(), wrong, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"securityGroups":{"groupIds":[%q]}}}`, w.group))))
	annotated(t, p)
	hasGroups(t, id, w.group)
}

func TestAPolicyThatComesWhileTheENIIsMadeCounts(t *testing.T) {
	second := securityGroup(t, "second")
	for _, api := range []string{"CreateNetworkInterface", "AssociateTrunkInterface"} {
		t.Run(api, func(t *testing.T) {
			start(t, 0, nil)
			name := map[string]string{"CreateNetworkInterface": "during-create", "AssociateTrunkInterface": "during-associate"}[api]
			namespace(t, name)
			id := launch(t, name, "m5.large", w.subnet)
			ready(t, name, id, 9)
			clear := w.region.Faults().Add(labec2.Fault{API: api, Role: "controller", Times: -1, Code: "RequestLimitExceeded"})
			t.Cleanup(clear)
			p := pod(t, name, "p", name)
			told(t, p, "Throttled", api)
			must(t, w.admin.Create(t.Context(), selecting(name, "more", everyPod, nil, second)))
			clear()
			annotated(t, p)
			hasGroups(t, id, w.group, second)
		})
	}
}

func TestALabelOfAServiceAccountIsNoticed(t *testing.T) {
	start(t, 0, nil)
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "account"}}))
	sa := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "account", Name: "default"}}
	must(t, client.IgnoreAlreadyExists(w.admin.Create(t.Context(), sa)))
	must(t, w.admin.Create(t.Context(), selecting("account", "p", nil, &metav1.LabelSelector{MatchLabels: map[string]string{"db": "yes"}}, w.group)))
	id := launch(t, "account", "m5.large", w.subnet)
	ready(t, "account", id, 9)
	p := pod(t, "account", "p", "account")
	told(t, p, "NoSecurityGroupPolicy")
	must(t, w.admin.Patch(t.Context(), sa, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"db":"yes"}}}`))))
	annotated(t, p)
}
