//go:build envtest

package controller_test

import (
	"context"
	"strings"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	authorizationv1 "k8s.io/api/authorization/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
)

// agentOf is a client with the token of the aws-node pod of a node, as the kubelet would ask for it.
func agentOf(t *testing.T, node string) client.Client {
	t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", GenerateName: "aws-node-", Labels: map[string]string{"k8s-app": "aws-node"}},
		Spec:       corev1.PodSpec{NodeName: node, ServiceAccountName: "aws-node", HostNetwork: true, Containers: []corev1.Container{{Name: "aws-node", Image: "i"}}},
	}
	must(t, w.admin.Create(t.Context(), p))
	t.Cleanup(func() { w.admin.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	return withToken(t, &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID})
}

func withToken(t *testing.T, bound *authenticationv1.BoundObjectReference) client.Client {
	t.Helper()
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{BoundObjectRef: bound}}
	must(t, w.admin.SubResource("token").Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "aws-node"}}, request))
	cfg := rest.AnonymousClientConfig(w.env.Config)
	cfg.BearerToken = request.Status.Token
	c, err := client.New(cfg, client.Options{Scheme: w.admin.Scheme()})
	must(t, err)
	return c
}

// A node that was broken into holds the token of its aws-node pod.
func TestANodesTokenChangesOnlyItsOwnNodesObjects(t *testing.T) {
	start(t, 0, nil)
	ids := map[string]string{}
	for _, name := range []string{"mine", "theirs"} {
		ids[name] = launch(t, name, "m5.large", w.subnet)
		ready(t, name, ids[name], 9)
	}
	merge := func(body string) client.Patch { return client.RawPatch("application/merge-patch+json", []byte(body)) }
	writes := func(c client.Client, node string) map[string]error {
		ctx := t.Context()
		return map[string]error{
			"the label":   c.Patch(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}, merge(`{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":"true"}}}`)),
			"the CNINode": c.Patch(ctx, &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: node}}, merge(`{"spec":{"features":[{"name":"SecurityGroupsForPods"}]}}`)),
			"the ledger's status": c.Status().Patch(ctx, &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: ids[node]}},
				merge(`{"status":{"released":[{"podUID":"u","vlanID":1,"releasedAt":"2026-01-02T03:04:05.000000Z"}]}}`)),
		}
	}
	agent := agentOf(t, "mine")
	// Tags are set by the controller's role.
	own := &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: "mine"}}
	must(t, w.admin.Patch(t.Context(), own.DeepCopy(), merge(`{"spec":{"tags":{"team":"shop"}}}`)))
	for _, body := range []string{`{"spec":{"tags":{"team":"mine"}}}`, `{"spec":{"tags":null}}`, `{"spec":{"tags":{"other":"x"}}}`} {
		if err := agent.Patch(t.Context(), own.DeepCopy(), merge(body)); err == nil || !strings.Contains(err.Error(), "spec.tags") {
			t.Errorf("the agent changed the tags of its CNINode by %s: %v", body, err)
		}
	}
	for what, err := range writes(agent, "mine") {
		if err != nil {
			t.Errorf("the agent can't write %s of its own node: %v", what, err)
		}
	}
	for what, err := range writes(agent, "theirs") {
		if err == nil || !strings.Contains(err.Error(), "the node agent may change only") {
			t.Errorf("the agent and %s of another node: %v", what, err)
		}
	}
	for what, err := range writes(withToken(t, nil), "mine") { // a token that names no node
		if err == nil {
			t.Errorf("a token without a node's name wrote %s", what)
		}
	}
	// What the ledger itself says is the controller's alone.
	err := agent.Patch(t.Context(), &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: ids["mine"]}}, merge(`{"spec":{"nodeName":"theirs"}}`))
	if !apierrors.IsForbidden(err) {
		t.Errorf("the agent wrote its ledger's spec: %v", err)
	}
	if err := agent.Status().Patch(t.Context(), &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: ids["mine"]}}, merge(`{"spec":{"nodeName":"theirs"}}`)); err == nil && ledgerOf(t, ids["mine"]).Spec.NodeName != "mine" {
		t.Error("by its status the agent wrote its ledger's spec")
	}
}

// All tests of this package run under the controller's role, so it is enough. This is that it is not more.
func TestTheControllersRoleIsNoMoreThanItNeeds(t *testing.T) {
	allowed := func(verb, group, resource, subresource, namespace, name string) bool {
		r := &authorizationv1.SubjectAccessReview{Spec: authorizationv1.SubjectAccessReviewSpec{User: user, Groups: []string{"system:serviceaccounts", "system:authenticated"},
			ResourceAttributes: &authorizationv1.ResourceAttributes{Verb: verb, Group: group, Resource: resource, Subresource: subresource, Namespace: namespace, Name: name}}}
		must(t, w.admin.Create(t.Context(), r))
		return r.Status.Allowed
	}
	for _, tt := range []struct {
		verb, group, resource, subresource, namespace, name string
		want                                                bool
	}{
		{"patch", "", "pods", "", "any", "p", true},
		{"patch", "", "nodes", "status", "", "n", true},
		{"update", "branchline.dev", "branchledgers", "", "", "i-1", true},
		{"get", "", "secrets", "", "kube-system", "branchline-webhook-certs", true},
		{"get", "", "secrets", "", "kube-system", "other", false},
		{"list", "", "secrets", "", "kube-system", "", false},
		{"get", "", "secrets", "", "default", "branchline-webhook-certs", false},
		{"patch", "", "nodes", "", "", "n", false},
		{"delete", "", "nodes", "", "", "n", false},
		{"create", "", "pods", "", "any", "", false},
		{"delete", "", "pods", "", "any", "p", false},
		{"create", "", "pods", "exec", "any", "p", false},
		{"list", "", "serviceaccounts", "", "any", "", false},
		{"get", "", "configmaps", "", "kube-system", "other", false},
		{"update", "vpcresources.k8s.aws", "securitygrouppolicies", "", "any", "p", false},
		{"update", "admissionregistration.k8s.io", "mutatingwebhookconfigurations", "", "", "other", false},
		{"update", "coordination.k8s.io", "leases", "", "kube-system", "kube-scheduler", false},
		{"escalate", "rbac.authorization.k8s.io", "clusterroles", "", "", "", false},
	} {
		if got := allowed(tt.verb, tt.group, tt.resource, tt.subresource, tt.namespace, tt.name); got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}
