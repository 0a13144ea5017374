package branch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// Events hold at most 1024 bytes.
const maxMessage = 1000

// retell is how often a pod that still can't be scheduled is looked at again.
const retell = time.Minute

// unscheduled says to a pod that the scheduler found no room for which nodes have how many branch ENIs, and who uses them.
func (r *Pods) unscheduled(ctx context.Context, pod *corev1.Pod) (ctrl.Result, error) {
	waits := slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && c.Reason == corev1.PodReasonUnschedulable
	})
	if !waits {
		return ctrl.Result{}, nil
	}
	var ledgers ledgerv1.BranchLedgerList
	if err := r.Client.List(ctx, &ledgers); err != nil {
		return ctrl.Result{}, fmt.Errorf("list ledgers: %w", err)
	}
	slices.SortFunc(ledgers.Items, func(a, b ledgerv1.BranchLedger) int { return strings.Compare(a.Spec.NodeName, b.Spec.NodeName) })
	var nodes []string
	for i := range ledgers.Items {
		s := &ledgers.Items[i].Spec
		pods, err := PodsOf(ctx, r.Client, s.NodeName)
		if err != nil {
			return ctrl.Result{}, err
		}
		nodes = append(nodes, usage(s.NodeName, s, pods))
	}
	message := "no node of the cluster has a trunk ENI: switch ENABLE_POD_ENI on, and use instance types that can carry one"
	if len(nodes) > 0 {
		message = "branch ENIs in use: " + strings.Join(nodes, "; ")
	}
	r.Events.Warn(pod, "InsufficientBranchENIs", "%s", message)
	return ctrl.Result{RequeueAfter: retell}, nil
}

// usage says how many branch ENIs of a node are in use, by whom, and how many only rest. pods are the node's pods that ask
// for one; those without a slot yet count too, as they do for the scheduler.
func usage(node string, s *ledgerv1.BranchLedgerSpec, pods []corev1.Pod) string {
	var users []string
	resting := 0
	for i := range s.Slots {
		switch slot := &s.Slots[i]; slot.State {
		case ledgerv1.Free:
		case ledgerv1.Creating, ledgerv1.Bound:
			users = append(users, slot.PodNamespace+"/"+slot.PodName)
		default:
			resting++
		}
	}
	for i := range pods {
		if ledger.Of(s, pods[i].UID) == nil {
			users = append(users, pods[i].Namespace+"/"+pods[i].Name)
		}
	}
	slices.Sort(users)
	var b strings.Builder
	fmt.Fprintf(&b, "node %s has %d of %d branch ENIs in use", node, len(users)+resting, s.Capacity)
	if len(users) > 0 {
		fmt.Fprintf(&b, " by %s", strings.Join(users, ", "))
	}
	if resting > 0 {
		fmt.Fprintf(&b, " (%d of them cooling down or being released)", resting)
	}
	return b.String()
}

func clip(message string) string {
	if len(message) <= maxMessage {
		return message
	}
	return message[:maxMessage] + " …"
}
