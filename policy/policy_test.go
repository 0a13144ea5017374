package policy

import (
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

func policyFor(name string, pod, sa *metav1.LabelSelector, groups ...string) v1beta1.SecurityGroupPolicy {
	return v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: v1beta1.SecurityGroupPolicySpec{
			PodSelector: pod, ServiceAccountSelector: sa, SecurityGroups: v1beta1.GroupIDs{Groups: groups},
		},
	}
}

func app(value string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": value}}
}

func TestMatch(t *testing.T) {
	all := &metav1.LabelSelector{}
	in := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "app", Operator: metav1.LabelSelectorOpIn, Values: []string{"green", "blue"}},
		{Key: "debug", Operator: metav1.LabelSelectorOpDoesNotExist},
	}}
	bad := &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}}
	elsewhere := policyFor("other", all, nil, "sg-9")
	elsewhere.Namespace = "bank"
	tests := map[string]struct {
		policies    []v1beta1.SecurityGroupPolicy
		labels, sa  map[string]string
		hostNetwork bool
		groups      []string
		names       []string
		invalid     int
	}{
		"no policy":                     {},
		"pod selector matches":          {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", app("green"), nil, "sg-1")}, groups: []string{"sg-1"}, names: []string{"a"}},
		"pod selector does not match":   {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", app("red"), nil, "sg-1")}},
		"empty selector matches all":    {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", all, nil, "sg-1")}, groups: []string{"sg-1"}, names: []string{"a"}},
		"empty account selector":        {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", nil, all, "sg-1")}, groups: []string{"sg-1"}, names: []string{"a"}},
		"no selector is ignored":        {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", nil, nil, "sg-1")}},
		"no groups is ignored":          {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", all, nil)}},
		"both selectors must match":     {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", app("green"), app("till"), "sg-1")}},
		"both selectors match":          {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", app("green"), app("till"), "sg-1")}, sa: map[string]string{"app": "till"}, groups: []string{"sg-1"}, names: []string{"a"}},
		"account alone":                 {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", nil, app("till"), "sg-1")}, sa: map[string]string{"app": "till"}, groups: []string{"sg-1"}, names: []string{"a"}},
		"account labels are not pod's":  {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", nil, app("green"), "sg-1")}},
		"other namespaces do not count": {policies: []v1beta1.SecurityGroupPolicy{elsewhere}},
		"hostNetwork is left alone":     {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", all, nil, "sg-1")}, hostNetwork: true},
		"expressions":                   {policies: []v1beta1.SecurityGroupPolicy{policyFor("a", in, nil, "sg-1")}, groups: []string{"sg-1"}, names: []string{"a"}},
		"groups are united once": {
			policies: []v1beta1.SecurityGroupPolicy{policyFor("b", all, nil, "sg-3", "sg-1"), policyFor("a", app("green"), nil, "sg-2", "sg-1", "sg-1")},
			groups:   []string{"sg-1", "sg-2", "sg-3"}, names: []string{"a", "b"},
		},
		"an unreadable policy spares the others": {
			policies: []v1beta1.SecurityGroupPolicy{policyFor("broken", bad, nil, "sg-3"), policyFor("a", all, nil, "sg-1")},
			groups:   []string{"sg-1"}, names: []string{"a"}, invalid: 1,
		},
		"unreadable, whatever the pod": {policies: []v1beta1.SecurityGroupPolicy{policyFor("broken", app("red"), bad, "sg-3")}, invalid: 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Labels: map[string]string{"app": "green"}}}
			if tt.labels != nil {
				pod.Labels = tt.labels
			}
			pod.Spec.HostNetwork = tt.hostNetwork
			got := Match(tt.policies, pod, tt.sa)
			if diff := cmp.Diff(tt.groups, got.Groups, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("groups (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(tt.names, got.Policies, cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("policies (-want +got):\n%s", diff)
			}
			if len(got.Invalid) != tt.invalid {
				t.Errorf("invalid = %v, want %d", got.Invalid, tt.invalid)
			}
			for _, err := range got.Invalid {
				if !strings.Contains(err.Error(), "shop/broken") {
					t.Errorf("error does not name the policy: %v", err)
				}
			}
		})
	}
}

func TestServiceAccountIsNeededOnlyWhereAPolicySelectsByIt(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: map[string]string{"app": "green"}}}
	for name, tt := range map[string]struct {
		policy v1beta1.SecurityGroupPolicy
		want   bool
	}{
		"by pod only":                {policyFor("a", app("green"), nil, "sg-1"), false},
		"by account":                 {policyFor("a", nil, app("x"), "sg-1"), true},
		"by both":                    {policyFor("a", app("green"), app("x"), "sg-1"), true},
		"by both, pod already fails": {policyFor("a", app("red"), app("x"), "sg-1"), false},
		"without groups":             {policyFor("a", nil, app("x")), false},
	} {
		if got := NeedsServiceAccount([]v1beta1.SecurityGroupPolicy{tt.policy}, pod); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// The union does not depend on the order of the policies, holds no duplicates, only ever grows when a policy is added,
// and NeedsServiceAccount is never wrong: where it says no, the account's labels make no difference.
func TestMatchProperties(t *testing.T) {
	labelSet := rapid.MapOfN(rapid.SampledFrom([]string{"app", "tier"}), rapid.SampledFrom([]string{"x", "y"}), 0, 2)
	selector := rapid.Custom(func(t *rapid.T) *metav1.LabelSelector {
		if rapid.Bool().Draw(t, "absent") {
			return nil
		}
		return &metav1.LabelSelector{MatchLabels: labelSet.Draw(t, "match")}
	})
	policy := rapid.Custom(func(t *rapid.T) v1beta1.SecurityGroupPolicy {
		groups := rapid.SliceOfN(rapid.SampledFrom([]string{"sg-1", "sg-2", "sg-3"}), 0, 3).Draw(t, "groups")
		p := policyFor(rapid.StringMatching(`[a-z]{3}`).Draw(t, "name"), selector.Draw(t, "pod"), selector.Draw(t, "sa"), groups...)
		p.Namespace = rapid.SampledFrom([]string{"shop", "bank"}).Draw(t, "namespace")
		return p
	})
	rapid.Check(t, func(t *rapid.T) {
		policies := rapid.SliceOfN(policy, 0, 6).Draw(t, "policies")
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Labels: labelSet.Draw(t, "labels")}}
		sa := labelSet.Draw(t, "sa labels")
		got := Match(policies, pod, sa)
		if !slices.IsSorted(got.Groups) || len(slices.Compact(slices.Clone(got.Groups))) != len(got.Groups) {
			t.Fatalf("not a sorted set: %v", got.Groups)
		}
		shuffled := slices.Clone(policies)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		if again := Match(shuffled, pod, sa); !slices.Equal(again.Groups, got.Groups) {
			t.Fatalf("order matters: %v and %v", got.Groups, again.Groups)
		}
		more := Match(append(slices.Clone(policies), policy.Draw(t, "one more")), pod, sa)
		for _, g := range got.Groups {
			if !slices.Contains(more.Groups, g) {
				t.Fatalf("a further policy took %s away: %v -> %v", g, got.Groups, more.Groups)
			}
		}
		if !NeedsServiceAccount(policies, pod) {
			other := labelSet.Draw(t, "other sa labels")
			if again := Match(policies, pod, other); !slices.Equal(again.Groups, got.Groups) {
				t.Fatalf("account labels %v and %v differ in effect though they were not needed", maps.Clone(sa), other)
			}
		}
	})
}

func TestWantsBranch(t *testing.T) {
	one := corev1.ResourceList{Resource: resource.MustParse("1")}
	for name, tt := range map[string]struct {
		spec corev1.PodSpec
		want bool
	}{
		"nothing":          {corev1.PodSpec{Containers: []corev1.Container{{}}}, false},
		"limit":            {corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: one}}}}, true},
		"request, 2nd":     {corev1.PodSpec{Containers: []corev1.Container{{}, {Resources: corev1.ResourceRequirements{Requests: one}}}}, true},
		"init container":   {corev1.PodSpec{InitContainers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: one}}}}, true},
		"another resource": {corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{"cpu": resource.MustParse("1")}}}}}, false},
	} {
		if got := WantsBranch(&corev1.Pod{Spec: tt.spec}); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}
