// Package groups finds out which security groups the policies in the API server give a pod. The webhook asks when the pod
// is made, the branch reconciler when its ENI is; they differ in how fresh a view they need, and say so by the readers
// that they pass. How a policy matches is policy's business, what follows from it the callers'.
package groups

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/policy"
)

// Of reads the policies of the pod's namespace and, only where one of them selects by it, the pod's ServiceAccount. A
// ServiceAccount that does not exist has no labels.
func Of(ctx context.Context, policies, accounts client.Reader, pod *corev1.Pod) (policy.Decision, error) {
	var list v1beta1.SecurityGroupPolicyList
	if err := policies.List(ctx, &list, client.InNamespace(pod.Namespace)); err != nil {
		return policy.Decision{}, fmt.Errorf("list the policies of namespace %s: %w", pod.Namespace, err)
	}
	var account corev1.ServiceAccount
	if policy.NeedsServiceAccount(list.Items, pod) {
		name := pod.Spec.ServiceAccountName
		if name == "" {
			name = "default"
		}
		if err := accounts.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, &account); client.IgnoreNotFound(err) != nil {
			return policy.Decision{}, fmt.Errorf("read ServiceAccount %s/%s of pod %s: %w", pod.Namespace, name, pod.Name, err)
		}
	}
	return policy.Match(list.Items, pod, account.Labels), nil
}
