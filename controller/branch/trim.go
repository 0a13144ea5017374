package branch

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/policy"
)

// Trim keeps of a pod what the controller reads, for its cache: a cluster has a hundred thousand of them. Of a pod that does
// not ask for a branch ENI that is who it is, and whether it has ended. It implements cache.TransformFunc.
func Trim(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	out := &corev1.Pod{
		TypeMeta: p.TypeMeta,
		ObjectMeta: metav1.ObjectMeta{
			Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, DeletionTimestamp: p.DeletionTimestamp,
		},
		Spec:   corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork},
		Status: corev1.PodStatus{Phase: p.Status.Phase},
	}
	if !policy.WantsBranch(p) {
		return out, nil
	}
	out.Labels, out.Spec.ServiceAccountName = p.Labels, p.Spec.ServiceAccountName
	if v, ok := p.Annotations[policy.Resource]; ok {
		out.Annotations = map[string]string{policy.Resource: v}
	}
	out.Spec.Containers, out.Spec.InitContainers = requests(p.Spec.Containers), requests(p.Spec.InitContainers)
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			out.Status.Conditions = []corev1.PodCondition{{Type: c.Type, Status: c.Status, Reason: c.Reason}}
		}
	}
	return out, nil
}

// requests keeps of containers what they name of the resource.
func requests(containers []corev1.Container) []corev1.Container {
	only := func(l corev1.ResourceList) corev1.ResourceList {
		q, ok := l[policy.Resource]
		if !ok {
			return nil
		}
		return corev1.ResourceList{policy.Resource: q}
	}
	var out []corev1.Container
	for i := range containers {
		r := corev1.ResourceRequirements{Limits: only(containers[i].Resources.Limits), Requests: only(containers[i].Resources.Requests)}
		if r.Limits != nil || r.Requests != nil {
			out = append(out, corev1.Container{Resources: r})
		}
	}
	return out
}

// TrimNode drops of a Node what is large and not read: the list of its images above all. It implements cache.TransformFunc.
func TrimNode(obj any) (any, error) {
	if n, ok := obj.(*corev1.Node); ok {
		n.ManagedFields, n.Annotations = nil, nil
		n.Status = corev1.NodeStatus{Capacity: n.Status.Capacity, Allocatable: n.Status.Allocatable, Conditions: n.Status.Conditions}
	}
	return obj, nil
}
