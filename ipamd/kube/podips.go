package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// PodIPsKey is the annotation that holds a pod's address (ANNOTATE_POD_IP); empty once it is released.
const PodIPsKey = "vpc.amazonaws.com/pod-ips"

// PodIPs is what a pod of this node says of its address.
type PodIPs struct {
	Pod
	// Text is the annotation's; empty also where there is none.
	Text string
}

// PodIPs returns the pods of this node from memory, but those in the host's network, which have no address of their own.
func (c *Client) PodIPs() (all []PodIPs) {
	for _, obj := range c.pods.GetStore().List() {
		if p, ok := obj.(*corev1.Pod); ok && !p.Spec.HostNetwork {
			all = append(all, PodIPs{podOf(p), p.Annotations[PodIPsKey]})
		}
	}
	return all
}

// AnnotateIPs writes the annotation of the pod with that UID. A pod that is gone, or that another one has followed under its
// name, is no error: there is nobody left to tell.
func (c *Client) AnnotateIPs(ctx context.Context, p Pod, text string) error {
	patch := map[string]any{"metadata": map[string]any{"uid": p.UID, "annotations": map[string]any{PodIPsKey: text}}}
	err := c.merge(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name}}, patch)
	if err == nil || apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil
	}
	return fmt.Errorf("set annotation %s of pod %s/%s: %w", PodIPsKey, p.Namespace, p.Name, err)
}
