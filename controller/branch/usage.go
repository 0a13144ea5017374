package branch

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/events"
)

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
	message, err := r.usage(ctx)
	if err != nil {
		return ctrl.Result{}, err
	}
	r.Events.Warn(pod, "InsufficientBranchENIs", "%s", message)
	return ctrl.Result{RequeueAfter: retell}, nil
}

// mostNodes is more than an event has room for.
const mostNodes = events.MaxMessage / len("node  has 0 of 0 branch ENIs in use. ")

// usage says who uses the branch ENIs of the first nodes, as many as an event holds, and how many more nodes there are. The
// ledgers are read where they lie in the cache: thousands of them are not copied for each pod that waits.
func (r *Pods) usage(ctx context.Context) (string, error) {
	var ledgers ledgerv1.BranchLedgerList
	if err := r.Client.List(ctx, &ledgers, client.UnsafeDisableDeepCopy); err != nil {
		return "", fmt.Errorf("list ledgers: %w", err)
	}
	if len(ledgers.Items) == 0 {
		return "no node of the cluster has a trunk ENI: switch ENABLE_POD_ENI on, and use instance types that can carry one", nil
	}
	specs := make([]*ledgerv1.BranchLedgerSpec, 0, len(ledgers.Items))
	for i := range ledgers.Items {
		specs = append(specs, &ledgers.Items[i].Spec)
	}
	slices.SortFunc(specs, func(a, b *ledgerv1.BranchLedgerSpec) int { return strings.Compare(a.NodeName, b.NodeName) })
	nodes, coolDown := []usage{}, r.CoolDown(ctx)
	for _, s := range specs[:min(len(specs), mostNodes)] {
		pods, err := PodsOf(ctx, r.Client, s.NodeName)
		if err != nil {
			return "", err
		}
		nodes = append(nodes, usageOf(s, pods, coolDown))
	}
	return say(nodes, len(specs)-len(nodes)), nil
}

// usage is what people ask about a node that has no room: who uses its branch ENIs, and what becomes of the others.
type usage struct {
	node     string
	capacity int
	// users have a branch ENI or, as the scheduler counts, a claim to one; never more than the capacity. waiting is how
	// many more pods were bound to the node past the scheduler.
	users   []string
	waiting int
	// Of the slots that no pod has: how many cool down, until when the first of them does, how many wait for the node's
	// word that nothing of their pod is left, how many are being deleted, and how many hold an ENI that isn't ours.
	cooling, releasing, deleting, foreign int
	coolUntil                             time.Time
}

// usageOf counts the node's slots. pods are its pods that ask for a branch ENI.
func usageOf(s *ledgerv1.BranchLedgerSpec, pods []corev1.Pod, coolDown time.Duration) usage {
	u := usage{node: s.NodeName, capacity: int(s.Capacity)}
	has := map[types.UID]bool{}
	for i := range s.Slots {
		slot := &s.Slots[i]
		has[slot.PodUID] = true
		switch slot.State {
		case ledgerv1.Free:
		case ledgerv1.Creating, ledgerv1.Bound:
			u.users = append(u.users, slot.PodNamespace+"/"+slot.PodName)
		case ledgerv1.Cooling:
			u.cooling++
			if at := slot.Since.Add(coolDown); u.coolUntil.IsZero() || at.Before(u.coolUntil) {
				u.coolUntil = at
			}
		case ledgerv1.Releasing:
			u.releasing++
		case ledgerv1.Occupied:
			u.foreign++
		default:
			u.deleting++
		}
	}
	var claims []string
	for i := range pods {
		if !has[pods[i].UID] {
			claims = append(claims, pods[i].Namespace+"/"+pods[i].Name)
		}
	}
	slices.Sort(claims)
	room := min(len(claims), max(0, u.capacity-len(u.users)))
	u.users, u.waiting = append(u.users, claims[:room]...), len(claims)-room
	slices.Sort(u.users)
	return u
}

// text names at most so many users.
func (u *usage) text(most int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "node %s has %d of %d branch ENIs in use", u.node, len(u.users), u.capacity)
	if named := min(most, len(u.users)); named > 0 {
		b.WriteString(" by " + strings.Join(u.users[:named], ", "))
		if left := len(u.users) - named; left > 0 {
			fmt.Fprintf(&b, " and %d more", left)
		}
	}
	part := func(n int, one, many string) {
		if n == 1 {
			fmt.Fprintf(&b, "; 1 more %s", one)
		} else if n > 1 {
			fmt.Fprintf(&b, "; %d more %s", n, many)
		}
	}
	until := u.coolUntil.UTC().Format(time.RFC3339)
	part(u.cooling, "is cooling down until "+until, "are cooling down, the first until "+until)
	part(u.releasing, "waits for the node to confirm its pod's end", "wait for the node to confirm their pods' end")
	part(u.deleting, "is being deleted", "are being deleted")
	part(u.foreign, "is held by an ENI that is not in the ledger", "are held by ENIs that are not in the ledger")
	if u.waiting > 0 {
		fmt.Fprintf(&b, "; pods bound past that and waiting: %d", u.waiting)
	}
	return b.String()
}

// say joins the nodes' texts, with as many users as an event holds, and as many nodes. others is how many nodes there are
// beside them.
func say(nodes []usage, others int) string {
	most := 0
	for i := range nodes {
		most = max(most, len(nodes[i].users))
	}
	for shown := len(nodes); shown > 0; {
		text := join(nodes, shown, most, others)
		if len(text) <= events.MaxMessage {
			return text
		}
		if most > 1 {
			most--
		} else {
			shown--
		}
	}
	return fmt.Sprintf("none of %d nodes with a trunk ENI has a branch ENI free", len(nodes)+others)
}

func join(nodes []usage, shown, most, others int) string {
	parts := make([]string, 0, shown+1)
	for i := range nodes[:shown] {
		parts = append(parts, nodes[i].text(most))
	}
	if left := len(nodes) - shown + others; left > 0 {
		parts = append(parts, fmt.Sprintf("and %d more nodes", left))
	}
	return strings.Join(parts, ". ")
}
