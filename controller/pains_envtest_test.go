//go:build envtest

package controller_test

import (
	"fmt"
	"strings"
	"testing"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/policy"
)

// TestP25 is "branch ENIs are not cleaned, and after three failures the VLAN id is forgotten".
func TestP25AnENIThatCanNotBeDeletedKeepsItsVLANIDUntilItCan(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "p25")
	id := launch(t, "p25", "m5.large", w.subnet)
	ready(t, "p25", id, 9)
	p := pod(t, "p25", "old", "p25")
	annotated(t, p)
	clear := w.region.Faults().Add(labec2.Fault{API: "DeleteNetworkInterface", Role: "controller", Times: -1, Code: "UnauthorizedOperation"})
	t.Cleanup(clear)
	remove(t, p)
	confirm(t, id, p)
	state(t, id, ledgerv1.Deleting)
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "p25"), &n))
	told(t, &n, "UnauthorizedOperation", "clean-up", "ec2:DeleteNetworkInterface")
	// Pods that come meanwhile get other ids, and the old one's ENI stays on record.
	for i := range 3 {
		if v := annotated(t, pod(t, "p25", fmt.Sprintf("new-%d", i), "p25")); strings.Contains(v, `"vlanId":1,`) {
			t.Errorf("the id of an ENI that is still there was given again: %s", v)
		}
	}
	if s := ledgerOf(t, id).Spec.Slots[0]; s.VLANID != 1 || s.State != ledgerv1.Deleting || s.ENIID == "" {
		t.Errorf("the slot is %+v", s)
	}
	branches(t, id, 4)
	clear()
	branches(t, id, 3)
	eventually(t, "the id is free", func() error {
		if s := ledgerOf(t, id).Spec.Slots[0]; s.State != ledgerv1.Free || s.ENIID != "" {
			return fmt.Errorf("slot %+v", s)
		}
		return nil
	})
}

// TestP38 is "another webhook or policy blocks the annotation".
func TestP38AnAnnotationThatIsForbiddenIsKeptByTheLedgerAndSaid(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "p38")
	id := launch(t, "p38", "m5.large", w.subnet)
	ready(t, "p38", id, 9)
	name := metav1.ObjectMeta{Name: "p38-no-annotations"}
	rule := &admissionregistrationv1.ValidatingAdmissionPolicy{ObjectMeta: name, Spec: admissionregistrationv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionregistrationv1.MatchResources{
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "p38"}},
			ResourceRules: []admissionregistrationv1.NamedRuleWithOperations{{RuleWithOperations: admissionregistrationv1.RuleWithOperations{
				Operations: []admissionregistrationv1.OperationType{admissionregistrationv1.Update},
				Rule:       admissionregistrationv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"pods"}},
			}}},
		},
		Validations: []admissionregistrationv1.Validation{{Expression: "!has(object.metadata.annotations)", Message: "no annotations here"}},
	}}
	must(t, w.admin.Create(t.Context(), rule))
	t.Cleanup(func() { client.IgnoreNotFound(w.admin.Delete(t.Context(), rule)) })
	must(t, w.admin.Create(t.Context(), &admissionregistrationv1.ValidatingAdmissionPolicyBinding{ObjectMeta: name, Spec: admissionregistrationv1.ValidatingAdmissionPolicyBindingSpec{
		PolicyName: name.Name, ValidationActions: []admissionregistrationv1.ValidationAction{admissionregistrationv1.Deny},
	}}))
	probe := pod(t, "p38", "probe", "") // on no node: nothing of it is assigned
	eventually(t, "the policy holds", func() error {
		err := w.admin.Patch(t.Context(), probe.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"annotations":{"a":"b"}}}`)), client.DryRunAll)
		if err == nil {
			return fmt.Errorf("an annotation is still allowed")
		}
		return nil
	})
	p := pod(t, "p38", "green", "p38")
	told(t, p, "AnnotationRefused", policy.Resource)
	s := ledgerOf(t, id).Spec.Slots[0]
	if s.State != ledgerv1.Bound || s.PodUID != p.UID || s.ENIID == "" {
		t.Fatalf("slot %+v", s)
	}
	must(t, w.admin.Delete(t.Context(), rule))
	if v := annotated(t, p); !strings.Contains(v, s.ENIID) {
		t.Errorf("the annotation is %s, the ledger has %s", v, s.ENIID)
	}
	branches(t, id, 1)
}
