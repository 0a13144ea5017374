package kube

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
	"github.com/branchline-cni/branchline/policy"
)

// mirrorAnnotation holds, on the API server's image of a static pod, the UID that the kubelet gives the pod.
const mirrorAnnotation = "kubernetes.io/config.mirror"

// NICConfigKey is the annotation by which a pod asks for several interfaces, SeveralNICs the one value that says so.
const (
	NICConfigKey = "k8s.amazonaws.com/nicConfig"
	SeveralNICs  = "multi-nic-attachment"
)

// ErrNoPod: the API server does not know the pod.
var ErrNoPod = errors.New("the API server knows no such pod")

// Pod is what the agent needs to know of a pod.
type Pod struct {
	Namespace, Name string
	// UID is the API object's; MirrorOf is the kubelet's own UID of a static pod.
	UID, MirrorOf string
	// Branch is set when any container names the extended resource in its limits or requests.
	Branch bool
	// Annotation is the pod-eni annotation; empty where the pod has none.
	Annotation string
	// NICConfig is the annotation by which a pod asks for several interfaces (SeveralNICs); empty where it has none.
	NICConfig string
	// IPs are the addresses that the pod's status tells, of one family or two; zero until the kubelet has said so.
	IPs [2]netip.Addr
	// Ended is set when no container of it will run again.
	Ended bool
	// WiredBefore is set when a sandbox of it was wired, whoever did it: the kubelet has said that it has an address or
	// that a container of it was made.
	WiredBefore bool
	// Object is what is kept of it, for comparing it with policies. It must not be changed.
	Object *corev1.Pod
}

// Is says whether the runtime's UID means this pod.
func (p Pod) Is(uid string) bool { return uid == p.UID || p.MirrorOf != "" && uid == p.MirrorOf }

// trim drops what the agent never reads, before it goes to memory.
func trim(obj any) (any, error) {
	p, ok := obj.(*corev1.Pod)
	if !ok {
		return obj, nil
	}
	small := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID, ResourceVersion: p.ResourceVersion, Labels: p.Labels, CreationTimestamp: p.CreationTimestamp},
		Spec:       corev1.PodSpec{NodeName: p.Spec.NodeName, HostNetwork: p.Spec.HostNetwork, ServiceAccountName: p.Spec.ServiceAccountName},
		Status:     corev1.PodStatus{Phase: p.Status.Phase, PodIPs: p.Status.PodIPs},
	}
	if wiredBefore(p) {
		// One container is enough to say it, here too.
		small.Status.ContainerStatuses = []corev1.ContainerStatus{{ContainerID: "was made"}}
	}
	for _, key := range []string{annotation.Key, mirrorAnnotation, policy.StampKey, PodIPsKey, NICConfigKey} {
		if v, ok := p.Annotations[key]; ok {
			if small.Annotations == nil {
				small.Annotations = map[string]string{}
			}
			small.Annotations[key] = v
		}
	}
	if requested(p) {
		// One container is enough to say it.
		small.Spec.Containers = []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{annotation.Key: resource.MustParse("1")}}}}
	}
	return small, nil
}

func requested(p *corev1.Pod) bool {
	for _, cs := range [][]corev1.Container{p.Spec.Containers, p.Spec.InitContainers} {
		for _, c := range cs {
			if _, ok := c.Resources.Limits[annotation.Key]; ok {
				return true
			}
			if _, ok := c.Resources.Requests[annotation.Key]; ok {
				return true
			}
		}
	}
	return false
}

// wiredBefore goes by what the kubelet has written of the pod. A pod that was refused has no address and no container.
func wiredBefore(p *corev1.Pod) bool {
	if p.Status.PodIP != "" || len(p.Status.PodIPs) > 0 || p.Status.Phase == corev1.PodRunning {
		return true
	}
	made := func(s corev1.ContainerStatus) bool {
		return s.ContainerID != "" || s.RestartCount > 0 || s.State.Running != nil || s.LastTerminationState.Terminated != nil
	}
	return slices.ContainsFunc(p.Status.InitContainerStatuses, made) || slices.ContainsFunc(p.Status.ContainerStatuses, made)
}

func podOf(p *corev1.Pod) Pod {
	var ips [2]netip.Addr
	for i, ip := range p.Status.PodIPs[:min(len(ips), len(p.Status.PodIPs))] {
		if addr, err := netip.ParseAddr(ip.IP); err == nil {
			ips[i] = addr.Unmap()
		}
	}
	return Pod{
		IPs:       ips,
		Namespace: p.Namespace, Name: p.Name, UID: string(p.UID), MirrorOf: p.Annotations[mirrorAnnotation],
		Branch: requested(p), Annotation: p.Annotations[annotation.Key], NICConfig: p.Annotations[NICConfigKey],
		Ended:       p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		WiredBefore: wiredBefore(p), Object: p,
	}
}

// Pod returns a pod of this node from memory.
func (c *Client) Pod(namespace, name string) (Pod, bool) {
	obj, ok, err := c.pods.GetStore().GetByKey(namespace + "/" + name)
	if err != nil || !ok {
		return Pod{}, false
	}
	return podOf(obj.(*corev1.Pod)), true
}

// LivePod asks the API server. ErrNoPod where it knows none of that name.
func (c *Client) LivePod(ctx context.Context, namespace, name string) (Pod, error) {
	var p corev1.Pod
	err := c.opt.API.Get(ctx, types.NamespacedName{Namespace: namespace, Name: name}, &p)
	if apierrors.IsNotFound(err) {
		return Pod{}, fmt.Errorf("pod %s/%s: %w", namespace, name, ErrNoPod)
	}
	if err != nil {
		return Pod{}, fmt.Errorf("ask the API server for pod %s/%s: %w", namespace, name, err)
	}
	return podOf(&p), nil
}
