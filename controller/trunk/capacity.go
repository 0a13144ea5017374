package trunk

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/policy"
)

// keepCapacity is for a node that waits for something about EC2 and may have its trunk all the same.
func (r *Nodes) keepCapacity(ctx context.Context, node *corev1.Node, id string) error {
	var l ledgerv1.BranchLedger
	if err := r.Client.Get(ctx, client.ObjectKey{Name: id}, &l); err != nil || l.Spec.TrunkENIID == "" || l.Spec.NodeName != node.Name {
		return client.IgnoreNotFound(err)
	}
	return r.setCapacity(ctx, node, &l)
}

// setCapacity patches the node's capacity and allocatable. l is nil for a node that is not managed.
func (r *Nodes) setCapacity(ctx context.Context, node *corev1.Node, l *ledgerv1.BranchLedger) error {
	pods, err := r.Pods(ctx, node.Name)
	if err != nil {
		return err
	}
	var max int32
	if l != nil {
		max = l.Spec.Capacity
	}
	want, ok := capacity(node, max, l != nil && l.Spec.TrunkENIID != "", runs(pods))
	if !ok {
		return nil
	}
	patch := client.MergeFrom(node.DeepCopy())
	for _, list := range []*corev1.ResourceList{&node.Status.Capacity, &node.Status.Allocatable} {
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[policy.Resource] = quantity(want)
	}
	if err := r.Client.Status().Patch(ctx, node, patch); err != nil {
		return client.IgnoreNotFound(fmt.Errorf("set the capacity of node %s to %d: %w", node.Name, want, err))
	}
	r.Log.InfoContext(ctx, "capacity set", "node", node.Name, "branchENIs", want)
	return nil
}
