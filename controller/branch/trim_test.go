package branch

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/policy"
)

func anyPod(t *rapid.T) *corev1.Pod {
	text := func(what string) string { return rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, what) }
	containers := func(what string) (out []corev1.Container) {
		for range rapid.IntRange(0, 3).Draw(t, what) {
			c := corev1.Container{Name: "c", Image: "i", Env: []corev1.EnvVar{{Name: "x", Value: strings.Repeat("y", 1000)}}}
			for _, list := range []*corev1.ResourceList{&c.Resources.Limits, &c.Resources.Requests} {
				switch rapid.IntRange(0, 3).Draw(t, "resources") {
				case 0:
					*list = corev1.ResourceList{"cpu": resource.MustParse("1")}
				case 1:
					*list = corev1.ResourceList{"cpu": resource.MustParse("1"), policy.Resource: resource.MustParse("1")}
				}
			}
			out = append(out, c)
		}
		return out
	}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "ns", Name: "p", UID: types.UID(text("uid")), ResourceVersion: "7", Labels: map[string]string{"app": text("label")},
			Annotations:   map[string]string{"kubectl.kubernetes.io/last-applied-configuration": strings.Repeat("z", 3000)},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: strings.Repeat("m", 1000)}},
		},
		Spec: corev1.PodSpec{
			NodeName: text("node"), HostNetwork: rapid.Bool().Draw(t, "host"), ServiceAccountName: text("account"),
			Containers: containers("containers"), InitContainers: containers("init"),
		},
		Status: corev1.PodStatus{Phase: corev1.PodPhase(text("phase")), Message: "long"},
	}
	if v := text("annotation"); v != "" {
		p.Annotations[policy.Resource] = fmt.Sprintf(`[{"eniId":%q}]`, v)
	}
	if rapid.Bool().Draw(t, "deleted") {
		p.DeletionTimestamp = &metav1.Time{}
	}
	for _, c := range []corev1.PodConditionType{corev1.PodReady, corev1.PodScheduled} {
		if rapid.Bool().Draw(t, string(c)) {
			p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: c, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable, Message: "0/5000 nodes are available"})
		}
	}
	return p
}

// Whatever is decided from a pod is decided alike from what the cache keeps of it.
func TestWhatTheCacheKeepsOfAPodIsEnough(t *testing.T) {
	policies := []v1beta1.SecurityGroupPolicy{{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: v1beta1.SecurityGroupPolicySpec{
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "a"}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-1"}},
	}}}
	rapid.Check(t, func(t *rapid.T) {
		p := anyPod(t)
		whole := p.DeepCopy()
		o, err := Trim(p)
		if err != nil {
			t.Fatal(err)
		}
		kept := o.(*corev1.Pod)
		same := kept.Namespace == whole.Namespace && kept.Name == whole.Name && kept.UID == whole.UID && kept.ResourceVersion == whole.ResourceVersion &&
			kept.Spec.NodeName == whole.Spec.NodeName && kept.Spec.HostNetwork == whole.Spec.HostNetwork && ended(kept) == ended(whole) &&
			kept.DeletionTimestamp.IsZero() == whole.DeletionTimestamp.IsZero() && policy.WantsBranch(kept) == policy.WantsBranch(whole)
		if policy.WantsBranch(whole) {
			scheduled := func(c corev1.PodCondition) bool {
				return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
			}
			same = same && named(kept.Annotations[policy.Resource]) == named(whole.Annotations[policy.Resource]) &&
				kept.Annotations[policy.Resource] == whole.Annotations[policy.Resource] && kept.Spec.ServiceAccountName == whole.Spec.ServiceAccountName &&
				slices.Equal(policy.Match(policies, kept, nil).Groups, policy.Match(policies, whole, nil).Groups) && policy.OnFargate(kept) == policy.OnFargate(whole) &&
				slices.ContainsFunc(kept.Status.Conditions, scheduled) == slices.ContainsFunc(whole.Status.Conditions, scheduled)
		}
		if !same {
			t.Fatalf("kept %+v\nof %+v", kept, whole)
		}
		if b, err := json.Marshal(kept); err != nil || len(b) > 1200 {
			t.Fatalf("%d bytes, %v", len(b), err)
		}
		again, err := Trim(kept.DeepCopy())
		if a, b := fmt.Sprint(again), fmt.Sprint(kept); err != nil || a != b {
			t.Fatalf("trimmed twice: %s\nonce: %s, %v", a, b, err)
		}
	})
}
