//go:build envtest

package controller_test

import (
	"context"
	"fmt"
	"testing"

	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/policy"
)

// With the controller there each pod of a namespace with policies carries the webhook's decision; without it none does, and
// nobody can make one up: the API server asks the guard, which is not there.
func TestP2EachPodCarriesTheWebhooksDecisionAndNobodyElses(t *testing.T) {
	namespace(t, "stamps")
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "stampless"}}))
	_, change := serving(t)
	_, stop := start(t, 0, change)
	hooked(t, "stamps")
	var p v1beta1.SecurityGroupPolicy
	must(t, w.admin.Get(t.Context(), client.ObjectKey{Namespace: "stamps", Name: "allow-rds-access"}, &p))
	selected := fmt.Sprintf(`[{"uid":%q,"generation":%d}]`, p.UID, p.Generation)
	forged := func(pod *corev1.Pod, value string) *corev1.Pod {
		pod.Annotations = map[string]string{policy.StampKey: value}
		return pod
	}
	for what, tt := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"selected":                        {plain("stamps", "p", green), selected},
		"selected, and says it is not":    {forged(plain("stamps", "p", green), "[]"), selected},
		"not selected":                    {plain("stamps", "p", nil), "[]"},
		"not selected, and says it is":    {forged(plain("stamps", "p", nil), selected), "[]"},
		"no policies":                     {plain("stampless", "p", green), ""},
		"no policies, and says there are": {forged(plain("stampless", "p", green), selected), ""},
		"on Fargate":                      {forged(plain("stamps", "p", map[string]string{policy.FargateProfileLabel: "f"}), "[]"), ""},
	} {
		got, err := admitted(tt.pod)
		if err != nil || got.Annotations[policy.StampKey] != tt.want {
			t.Errorf("%s: %v, %v", what, got.Annotations, err)
		}
	}
	stamped := plain("stamps", "kept", nil)
	must(t, w.admin.Create(t.Context(), stamped))
	t.Cleanup(func() { w.admin.Delete(context.Background(), stamped, client.GracePeriodSeconds(0)) })
	refused := func(when string) {
		t.Helper()
		for _, value := range []string{selected, ""} {
			for _, subresource := range []string{"", "status"} {
				if err := annotatePod(w.admin, stamped, policy.StampKey, value, subresource); err == nil {
					t.Errorf("%s the stamp was changed to %q by %q", when, value, subresource)
				}
			}
		}
	}
	refused("with the controller")
	must(t, stop())
	refused("without the controller")
	if got, err := admitted(plain("stamps", "missed", green)); err != nil || len(got.Annotations) > 0 || asks(got) {
		t.Errorf("without the controller: %+v, %v", got, err)
	}
	if _, err := admitted(forged(plain("stamps", "forged", green), "[]")); err == nil {
		t.Error("without the controller a pod was created with a stamp of its own")
	}
	start(t, 0, change)
	hooked(t, "stamps")
	if got, err := admitted(plain("stamps", "again", green)); err != nil || !asks(got) || got.Annotations[policy.StampKey] != selected {
		t.Errorf("created again: %+v, %v", got, err)
	}
}

// A node knows by its CNINode whether it may expect stamps: whoever made that, and also where the webhooks come later or go.
func TestTheCNINodeSaysWhetherPodsAreStamped(t *testing.T) {
	_, change := serving(t)
	says := func(want bool) {
		t.Helper()
		for _, node := range []string{"stamped-small", "stamped-large"} {
			eventually(t, "CNINode of "+node, func() error {
				var n v1alpha1.CNINode
				if err := w.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
					return err
				}
				if n.Stamps() != want {
					return fmt.Errorf("%v", n.Annotations)
				}
				return nil
			})
		}
	}
	for node, id := range map[string]string{"stamped-small": "i-0000000000000000a", "stamped-large": "i-0000000000000000b"} {
		register(t, node, map[string]string{"stamped-small": "t3.medium", "stamped-large": "m5.large"}[node], id)
		t.Cleanup(func() {
			w.admin.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}})
		})
	}
	for _, with := range []bool{false, true, false} {
		_, stop := start(t, 0, func(o *controller.Options) {
			if with {
				change(o)
			}
		})
		says(with)
		must(t, stop())
		noWebhooks(t)
	}
}

// The node agents of a cluster read what decides about their pods, and no more.
func TestTheAgentsRoleIsNoMoreThanItNeeds(t *testing.T) {
	for _, tt := range []struct {
		verb, group, resource, subresource string
		want                               bool
	}{
		{"list", "vpcresources.k8s.aws", "securitygrouppolicies", "", true},
		{"watch", "vpcresources.k8s.aws", "securitygrouppolicies", "", true},
		{"update", "vpcresources.k8s.aws", "securitygrouppolicies", "", false},
		{"delete", "vpcresources.k8s.aws", "securitygrouppolicies", "", false},
		{"get", "", "serviceaccounts", "", true},
		{"list", "", "serviceaccounts", "", false},
		{"watch", "", "serviceaccounts", "", false},
		{"create", "", "serviceaccounts", "token", false},
		{"get", "", "secrets", "", false},
		{"get", "", "configmaps", "", false},
		{"patch", "", "pods", "", false},
		{"delete", "", "pods", "", false},
		{"update", "vpcresources.k8s.aws", "cninodes", "", false},
		{"patch", "branchline.dev", "branchledgers", "", false},
		{"patch", "branchline.dev", "branchledgers", "status", true},
	} {
		r := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: "system:serviceaccount:kube-system:aws-node", Groups: []string{"system:serviceaccounts", "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: tt.verb, Group: tt.group, Resource: tt.resource, Subresource: tt.subresource, Namespace: "any", Name: "p"}}}
		must(t, w.admin.Create(t.Context(), r))
		if r.Status.Allowed != tt.want {
			t.Errorf("%+v: %v", tt, r.Status.Allowed)
		}
	}
}
