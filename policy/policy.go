// Package policy decides which security groups a pod gets from the SecurityGroupPolicies of its namespace. It is pure:
// the caller brings the policies and, only where NeedsServiceAccount says so, the labels of the pod's ServiceAccount.
// The control plane and the node agent use the same functions, so that they cannot disagree. Decide is the node's last
// word: whether a pod may be wired with what it has.
//
// It reads nothing, caches nothing, and knows nothing of EC2.
package policy

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

// Resource is the extended resource that a branch pod asks for, and the key of the annotation that answers it.
const Resource = "vpc.amazonaws.com/pod-eni"

// FargateProfileLabel marks pods that run on Fargate: they get groups by annotation, not by a branch ENI.
const FargateProfileLabel = "eks.amazonaws.com/fargate-profile"

// Decision is what the policies give a pod.
type Decision struct {
	// Groups is the union over all matching policies, sorted, without duplicates. Empty: no policy matches.
	Groups []string
	// Policies are the names of the matching policies, sorted. Selecting are the same by UID and generation, sorted by UID.
	Policies  []string
	Selecting []Ref
	// Considered is how many policies the pod's namespace has, those included that select nobody.
	Considered int
	// Invalid holds one error per policy whose selector can't be read. Such a policy selects nobody.
	Invalid []error
}

// NeedsServiceAccount says whether the labels of the pod's ServiceAccount can matter to Match.
func NeedsServiceAccount(policies []v1beta1.SecurityGroupPolicy, pod *corev1.Pod) bool {
	for i := range policies {
		p := &policies[i]
		if p.Namespace != pod.Namespace || ignored(p) || p.Spec.ServiceAccountSelector == nil {
			continue
		}
		if p.Spec.PodSelector == nil {
			return true
		}
		if ok, err := selects(p.Spec.PodSelector, pod.Labels); err == nil && ok {
			return true
		}
	}
	return false
}

// Match unites the groups of all policies that select the pod. Policies of other namespaces are ignored, so the caller
// may pass more than needed. pod.Namespace has to be set. Pods on the host's network get nothing: they have no
// interface of their own.
func Match(policies []v1beta1.SecurityGroupPolicy, pod *corev1.Pod, serviceAccount map[string]string) Decision {
	var d Decision
	if pod.Spec.HostNetwork {
		return d
	}
	for i := range policies {
		p := &policies[i]
		if p.Namespace != pod.Namespace {
			continue
		}
		if d.Considered++; ignored(p) {
			continue
		}
		ok, err := matches(p, pod.Labels, serviceAccount)
		if err != nil {
			d.Invalid = append(d.Invalid, err)
			continue
		}
		if ok {
			d.Policies = append(d.Policies, p.Name)
			d.Selecting = append(d.Selecting, Ref{p.UID, p.Generation})
			d.Groups = append(d.Groups, p.Spec.SecurityGroups.Groups...)
		}
	}
	slices.Sort(d.Policies)
	sortRefs(d.Selecting)
	slices.Sort(d.Groups)
	d.Groups = slices.Compact(d.Groups)
	return d
}

// ignored policies select by nothing or give nothing.
func ignored(p *v1beta1.SecurityGroupPolicy) bool {
	return p.Spec.PodSelector == nil && p.Spec.ServiceAccountSelector == nil || len(p.Spec.SecurityGroups.Groups) == 0
}

func matches(p *v1beta1.SecurityGroupPolicy, pod, serviceAccount map[string]string) (bool, error) {
	// Both selectors are read even where the first one already says no: whether a policy is invalid must not depend on
	// the pod.
	all := true
	for _, s := range []struct {
		field    string
		selector *metav1.LabelSelector
		labels   map[string]string
	}{
		{"podSelector", p.Spec.PodSelector, pod},
		{"serviceAccountSelector", p.Spec.ServiceAccountSelector, serviceAccount},
	} {
		if s.selector == nil {
			continue
		}
		ok, err := selects(s.selector, s.labels)
		if err != nil {
			return false, fmt.Errorf("SecurityGroupPolicy %s/%s selects nobody: %s: %w", p.Namespace, p.Name, s.field, err)
		}
		all = all && ok
	}
	return all, nil
}

func selects(s *metav1.LabelSelector, set map[string]string) (bool, error) {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return false, err
	}
	return selector.Matches(labels.Set(set)), nil
}

// WantsBranch says whether a container of the pod names the resource in its limits or requests.
func WantsBranch(pod *corev1.Pod) bool {
	for _, containers := range [][]corev1.Container{pod.Spec.Containers, pod.Spec.InitContainers} {
		for i := range containers {
			r := &containers[i].Resources
			if _, ok := r.Limits[Resource]; ok {
				return true
			}
			if _, ok := r.Requests[Resource]; ok {
				return true
			}
		}
	}
	return false
}

// OnFargate says whether the pod runs on Fargate.
func OnFargate(pod *corev1.Pod) bool {
	_, ok := pod.Labels[FargateProfileLabel]
	return ok
}
