package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// What a kubelet's heartbeat changes must wake nobody; what decides where ENIs go must.
func TestOfANodeOnlyWhatCountsIsKeptAndWakes(t *testing.T) {
	o := Options{NodeName: "n", NodeLabels: []string{"zone"}, NodeAnnotations: []string{"eni"}}
	trimmed := func(change func(*corev1.Node)) any {
		t.Helper()
		n := &corev1.Node{
			ObjectMeta: metav1.ObjectMeta{Name: "n", Labels: map[string]string{"zone": "a", "other": "x", TrunkLabel: "true"}, Annotations: map[string]string{"eni": "c"}},
			Status:     corev1.NodeStatus{Conditions: []corev1.NodeCondition{{Type: corev1.NodeReady}}},
		}
		change(n)
		out, err := o.trimNode(n)
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	was := trimmed(func(*corev1.Node) {})
	if n := was.(*corev1.Node); len(n.Labels) != 2 || n.Labels["zone"] != "a" || n.Labels[TrunkLabel] != "true" || len(n.Annotations) != 1 || len(n.Status.Conditions) > 0 {
		t.Errorf("kept %+v", n)
	}
	for what, c := range map[string]struct {
		change func(*corev1.Node)
		wakes  bool
	}{
		"a heartbeat":       {func(n *corev1.Node) { n.ResourceVersion, n.Status.Conditions = "2", nil }, false},
		"a label of others": {func(n *corev1.Node) { n.Labels["other"] = "y" }, false},
		"a label":           {func(n *corev1.Node) { n.Labels["zone"] = "b" }, true},
		"the trunk's label": {func(n *corev1.Node) { delete(n.Labels, TrunkLabel) }, true},
		"an annotation":     {func(n *corev1.Node) { n.Annotations = nil }, true},
		"a cordon":          {func(n *corev1.Node) { n.Spec.Unschedulable = true }, true},
		"a cordon's taint": {func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}
		}, true},
		"a taint of another": {func(n *corev1.Node) {
			n.Spec.Taints = []corev1.Taint{{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}}
		}, false},
	} {
		if now := trimmed(c.change); sameNode(was, now) == c.wakes {
			t.Errorf("%s: wakes %t", what, !c.wakes)
		}
	}
}
