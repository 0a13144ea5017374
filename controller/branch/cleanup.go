package branch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// CleanUp takes the slots of pods that have ended back to free. The object's key is the ledger's: the instance id.
type CleanUp struct {
	Client   client.Client
	Live     client.Reader
	Cloud    *cloud.Client
	Ledgers  *ledger.Store
	Events   *events.Recorder
	Log      *slog.Logger
	Now      func() time.Time
	CoolDown func(context.Context) time.Duration
}

// Reconcile implements reconcile.Reconciler.
func (r *CleanUp) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var cached ledgerv1.BranchLedger
	if err := r.Client.Get(ctx, req.NamespacedName, &cached); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	if !busy(&cached.Spec) {
		return ctrl.Result{}, nil
	}
	coolDown := r.CoolDown(ctx)
	l, err := r.Ledgers.Update(ctx, req.Name, func(l *ledgerv1.BranchLedger) error {
		now := r.Now()
		confirmed := ledger.Confirm(&l.Spec, l.Status.Released, now)
		cooled := ledger.Cool(&l.Spec, now, coolDown)
		if !confirmed && !cooled {
			return ledger.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	var failed []error
	if l, err = r.unconfirmed(ctx, l, coolDown); err != nil {
		failed = append(failed, err)
	}
	if l != nil {
		for i := range l.Spec.Slots {
			if s := l.Spec.Slots[i]; s.State == ledgerv1.Deleting {
				if err := r.remove(ctx, l, &s); err != nil {
					failed = append(failed, err)
				}
			}
		}
		if at, ok := ledger.Due(&l.Spec, coolDown); ok && len(failed) == 0 {
			// What is due already and has not gone waits for somebody else: it is looked at again at leisure.
			if wait := at.Sub(r.Now()); wait > 0 {
				return ctrl.Result{RequeueAfter: wait}, nil
			}
			return ctrl.Result{RequeueAfter: coolDown}, nil
		}
	}
	return ctrl.Result{}, errors.Join(failed...)
}

func busy(s *ledgerv1.BranchLedgerSpec) bool {
	for i := range s.Slots {
		switch s.Slots[i].State {
		case ledgerv1.Releasing, ledgerv1.Cooling, ledgerv1.Deleting, ledgerv1.Occupied:
			return true
		}
	}
	return false
}

// unconfirmed looks at slots that have waited for twice the cool-down: released ones that their node does not confirm, and
// occupied ones.
func (r *CleanUp) unconfirmed(ctx context.Context, l *ledgerv1.BranchLedger, coolDown time.Duration) (*ledgerv1.BranchLedger, error) {
	due := func(s *ledgerv1.Slot) bool {
		return (s.State == ledgerv1.Releasing || s.State == ledgerv1.Occupied) && !r.Now().Before(s.Since.Add(2*coolDown))
	}
	any, occupied := false, false
	for i := range l.Spec.Slots {
		s := &l.Spec.Slots[i]
		any, occupied = any || due(s), occupied || due(s) && s.State == ledgerv1.Occupied
	}
	if !any {
		return l, nil
	}
	agentGone, err := r.agentGone(ctx, l.Spec.NodeName)
	if err != nil {
		return l, err
	}
	running, err := r.Cloud.Runs(ctx, l.Spec.InstanceID)
	instanceGone := errors.Is(err, cloud.ErrInstanceTerminated)
	if err != nil && !errors.Is(err, cloud.ErrInstanceGone) {
		return l, err
	}
	if err != nil && !instanceGone {
		// EC2 does not know it, which may be a passing error. Whether it is gone package trunk decides.
		running = true
	}
	if !agentGone && !instanceGone && !occupied {
		return l, nil // whatever EC2 has associated, it would change nothing
	}
	associations, err := r.Cloud.Associations(ctx)
	if err != nil {
		return l, err
	}
	onTrunk := map[string]bool{}
	for _, a := range associations {
		onTrunk[a.BranchENIID] = true
	}
	ours := map[string]bool{} // and of no living pod
	if occupied {
		made, err := r.Cloud.OfInstance(ctx, l.Spec.InstanceID)
		if err != nil {
			return l, err
		}
		pods, err := livingPods(ctx, r.Live, client.MatchingFields{"spec.nodeName": l.Spec.NodeName})
		if err != nil {
			return l, err
		}
		for _, e := range made {
			ours[e.ID] = !pods.uses(&e)
		}
	}
	stored, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		changed := false
		for i := range l.Spec.Slots {
			s := &l.Spec.Slots[i]
			if !due(s) {
				continue
			}
			switch {
			case s.State == ledgerv1.Releasing:
				// The slot got here by its pod's end, so that part of the evidence stands.
				e := ledger.Evidence{InstanceGone: instanceGone, PodEnded: true, AgentGone: agentGone, Unwired: !running || !onTrunk[s.ENIID]}
				changed = ledger.Reclaim(&l.Spec, s.VLANID, e, r.Now(), coolDown) || changed
			case !onTrunk[s.ENIID]:
				changed = ledger.Vacated(&l.Spec, s.VLANID, r.Now(), coolDown) || changed
			case ours[s.ENIID] && !held(&l.Spec, s):
				changed = ledger.Claimed(&l.Spec, s.VLANID, r.Now(), coolDown) || changed
			}
		}
		if !changed {
			return ledger.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		return nil, client.IgnoreNotFound(err)
	}
	return stored, nil
}

// held says whether another slot has the ENI.
func held(s *ledgerv1.BranchLedgerSpec, slot *ledgerv1.Slot) bool {
	for i := range s.Slots {
		if o := &s.Slots[i]; o.VLANID != slot.VLANID && o.ENIID == slot.ENIID {
			return true
		}
	}
	return false
}

// agentGone says whether nobody on the node asks for security groups for pods any more.
func (r *CleanUp) agentGone(ctx context.Context, node string) (bool, error) {
	var c v1alpha1.CNINode
	err := r.Live.Get(ctx, client.ObjectKey{Name: node}, &c)
	if apierrors.IsNotFound(err) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read CNINode %s: %w", node, err)
	}
	_, asks := c.Has(v1alpha1.SecurityGroupsForPods)
	return !asks, nil
}

// remove deletes a slot's branch ENI and frees the VLAN id. A failure leaves the slot as it is: it is tried for ever.
func (r *CleanUp) remove(ctx context.Context, l *ledgerv1.BranchLedger, s *ledgerv1.Slot) error {
	eniID := s.ENIID
	if eniID == "" && s.Claim != "" {
		eni, err := r.Cloud.ByClaim(ctx, s.Claim)
		if err != nil {
			return err
		}
		if eni != nil {
			eniID = eni.ID
		}
	}
	if eniID != "" {
		if err := r.Cloud.Remove(ctx, eniID, s.AssociationID); err != nil {
			r.tell(ctx, l.Spec.NodeName, err)
			return err
		}
	}
	_, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		have := ledger.Slot(&l.Spec, s.VLANID)
		if have == nil || have.State != ledgerv1.Deleting || have.Claim != s.Claim {
			return ledger.ErrUnchanged
		}
		return ledger.Free(&l.Spec, s.VLANID, r.Now())
	})
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	r.Log.InfoContext(ctx, "VLAN id is free", "instance", l.Name, "vlan", s.VLANID, "eni", eniID)
	return nil
}

func (r *CleanUp) tell(ctx context.Context, nodeName string, cause error) {
	var node corev1.Node
	if err := r.Client.Get(ctx, client.ObjectKey{Name: nodeName}, &node); err != nil {
		return // nobody to tell; the error goes to the log
	}
	reason, message := cloud.Explain(cause)
	r.Events.Warn(&node, reason, "branch ENI clean-up: %s", message)
}
