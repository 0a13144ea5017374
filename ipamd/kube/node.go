package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
)

// TrunkLabel on a Node means that a trunk is attached and up. A hosted admission webhook lets the agent change nothing
// else on its Node that matters here.
const TrunkLabel = "vpc.amazonaws.com/has-trunk-attached"

// ErrNoCNINode: the controller has not made this node's CNINode yet.
var ErrNoCNINode = errors.New("this node has no CNINode yet")

// ErrNoNode: the kubelet has not registered this node, or it was deleted.
var ErrNoNode = errors.New("this node is not in the API server")

// HasTrunkLabel says whether the Node in memory has the label, and whether its value is the one that SetTrunkLabel
// sets. ErrNotSynced and ErrNoNode say that this is not known.
func (c *Client) HasTrunkLabel() (present, right bool, err error) {
	if !c.node.HasSynced() {
		return false, false, ErrNotSynced
	}
	n := c.nodeObject()
	if n == nil {
		return false, false, ErrNoNode
	}
	v, present := n.Labels[TrunkLabel]
	return present, v == "true", nil
}

func (c *Client) nodeObject() *corev1.Node {
	for _, obj := range c.node.GetStore().List() {
		if n, ok := obj.(*corev1.Node); ok && n.Name == c.opt.NodeName {
			return n
		}
	}
	return nil
}

// Node is what the agent needs to know of its Node.
type Node struct {
	// Labels and Annotations are those of Options.
	Labels, Annotations map[string]string
	// Unschedulable is set on a cordoned node.
	Unschedulable bool
}

// Node returns the Node from memory. ErrNotSynced and ErrNoNode say that it is not known.
func (c *Client) Node() (Node, error) {
	if !c.node.HasSynced() {
		return Node{}, ErrNotSynced
	}
	n := c.nodeObject()
	if n == nil {
		return Node{}, ErrNoNode
	}
	return Node{Labels: n.Labels, Annotations: n.Annotations, Unschedulable: n.Spec.Unschedulable}, nil
}

// trimNode keeps of a Node what the agent reads. A taint that says what a cordon says is one.
func (o Options) trimNode(obj any) (any, error) {
	n, ok := obj.(*corev1.Node)
	if !ok {
		return obj, nil
	}
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{
			Name: n.Name, UID: n.UID, ResourceVersion: n.ResourceVersion,
			Labels: pick(n.Labels, append([]string{TrunkLabel}, o.NodeLabels...)), Annotations: pick(n.Annotations, o.NodeAnnotations),
		},
		Spec: corev1.NodeSpec{Unschedulable: n.Spec.Unschedulable || slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool {
			return t.Key == corev1.TaintNodeUnschedulable && t.Effect == corev1.TaintEffectNoSchedule
		})},
	}, nil
}

func pick(from map[string]string, keys []string) (out map[string]string) {
	for _, k := range keys {
		if v, ok := from[k]; ok {
			if out == nil {
				out = map[string]string{}
			}
			out[k] = v
		}
	}
	return out
}

func sameNode(old, now any) bool {
	a, ok := old.(*corev1.Node)
	b, ok2 := now.(*corev1.Node)
	return ok && ok2 && a.UID == b.UID && maps.Equal(a.Labels, b.Labels) && maps.Equal(a.Annotations, b.Annotations) && a.Spec.Unschedulable == b.Spec.Unschedulable
}

// HasFeature says whether the CNINode in memory has the feature with that value.
func (c *Client) HasFeature(f cninodev1.Feature) (has bool, err error) {
	for _, obj := range c.cninode.GetStore().List() {
		if n, ok := obj.(*cninodev1.CNINode); ok && n.Name == c.opt.NodeName {
			return slices.Contains(n.Spec.Features, f), nil
		}
	}
	return false, ErrNoCNINode
}

// AddFeature makes sure that the CNINode has the feature: the one of the same name is replaced, others stay. It is one
// get and one merge patch that carries the resourceVersion, tried again when someone else was faster.
func (c *Client) AddFeature(ctx context.Context, f cninodev1.Feature) error {
	return untilFirst(ctx, func() error {
		var n cninodev1.CNINode
		err := c.opt.API.Get(ctx, types.NamespacedName{Name: c.opt.NodeName}, &n)
		if apierrors.IsNotFound(err) {
			return ErrNoCNINode
		}
		if err != nil {
			return fmt.Errorf("get CNINode %s: %w", c.opt.NodeName, err)
		}
		if slices.Contains(n.Spec.Features, f) {
			return nil
		}
		features := slices.DeleteFunc(slices.Clone(n.Spec.Features), func(o cninodev1.Feature) bool { return o.Name == f.Name })
		patch := map[string]any{
			"metadata": map[string]any{"resourceVersion": n.ResourceVersion},
			"spec":     map[string]any{"features": append(features, f)},
		}
		if err := c.merge(ctx, &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: c.opt.NodeName}}, patch); err != nil {
			return fmt.Errorf("add feature %s to CNINode %s: %w", f.Name, c.opt.NodeName, err)
		}
		return nil
	})
}

// SetTrunkLabel sets or removes the label, and touches nothing else.
func (c *Client) SetTrunkLabel(ctx context.Context, attached bool) error {
	var v any // nil removes
	if attached {
		v = "true"
	}
	patch := map[string]any{"metadata": map[string]any{"labels": map[string]any{TrunkLabel: v}}}
	if err := c.merge(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: c.opt.NodeName}}, patch); err != nil {
		return fmt.Errorf("set label %s of node %s: %w", TrunkLabel, c.opt.NodeName, err)
	}
	return nil
}

func (c *Client) merge(ctx context.Context, o Object, patch any, subresource ...string) error {
	b, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return c.opt.API.Patch(ctx, o, b, subresource...)
}
