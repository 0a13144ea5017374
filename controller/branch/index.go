package branch

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/policy"
)

// Indexes of the manager's cache.
const (
	// IndexSlotPod finds ledgers by namespace/name of a pod that a slot names.
	IndexSlotPod = "slots.pod"
	// IndexLedgerNode finds ledgers by their node.
	IndexLedgerNode = "spec.nodeName"
	// IndexPodNode finds pods that ask for a branch ENI by their node.
	IndexPodNode = "branch.nodeName"
)

// Index registers the indexes.
func Index(ctx context.Context, i client.FieldIndexer) error {
	if err := i.IndexField(ctx, &ledgerv1.BranchLedger{}, IndexSlotPod, func(o client.Object) []string {
		var keys []string
		for _, s := range o.(*ledgerv1.BranchLedger).Spec.Slots {
			if s.PodName != "" {
				keys = append(keys, s.PodNamespace+"/"+s.PodName)
			}
		}
		return keys
	}); err != nil {
		return fmt.Errorf("index ledgers by pod: %w", err)
	}
	if err := i.IndexField(ctx, &ledgerv1.BranchLedger{}, IndexLedgerNode, func(o client.Object) []string {
		return []string{o.(*ledgerv1.BranchLedger).Spec.NodeName}
	}); err != nil {
		return fmt.Errorf("index ledgers by node: %w", err)
	}
	if err := i.IndexField(ctx, &corev1.Pod{}, IndexPodNode, func(o client.Object) []string {
		pod := o.(*corev1.Pod)
		if pod.Spec.NodeName == "" || !policy.WantsBranch(pod) {
			return nil
		}
		return []string{pod.Spec.NodeName}
	}); err != nil {
		return fmt.Errorf("index pods by node: %w", err)
	}
	return nil
}

// PodsOf lists the pods of a node that ask for a branch ENI and have not ended.
func PodsOf(ctx context.Context, c client.Reader, node string) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.MatchingFields{IndexPodNode: node}); err != nil {
		return nil, fmt.Errorf("list branch pods of node %s: %w", node, err)
	}
	live := pods.Items[:0]
	for _, p := range pods.Items {
		if !ended(&p) {
			live = append(live, p)
		}
	}
	return live, nil
}
