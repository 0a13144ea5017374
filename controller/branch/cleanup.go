package branch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
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
	"github.com/branchline-cni/branchline/controller/trunk"
)

// CleanUp takes the slots of pods that have ended back to free. The object's key is the ledger's: the instance id.
type CleanUp struct {
	Client   client.Client
	Live     client.Reader
	Cloud    *cloud.Client
	Asked    *trunk.Asked
	Ledgers  *ledger.Store
	Events   *events.Recorder
	Log      *slog.Logger
	Now      func() time.Time
	CoolDown func(context.Context) time.Duration
}

// Reconcile implements reconcile.Reconciler.
func (r *CleanUp) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var cached ledgerv1.BranchLedger
	err := r.Client.Get(ctx, req.NamespacedName, &cached)
	if client.IgnoreNotFound(err) != nil {
		return ctrl.Result{}, err
	}
	if err != nil || !busy(&cached.Spec) {
		r.Asked.Forget(req.Name, trunk.OfSlots)
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
	var again time.Duration
	if l, again, err = r.unconfirmed(ctx, l, coolDown); err != nil {
		failed = append(failed, err)
	}
	if l != nil {
		associated := sync.OnceValues(func() (map[string]string, error) { return r.Cloud.AssociationIDs(ctx, []string{l.Spec.TrunkENIID}) })
		for i := range l.Spec.Slots {
			if s := l.Spec.Slots[i]; s.State == ledgerv1.Deleting {
				if err := r.remove(ctx, l, &s, associated); err != nil {
					failed = append(failed, err)
				}
			}
		}
		if at, ok := ledger.Due(&l.Spec, coolDown); ok && len(failed) == 0 {
			// What is due already and has not gone waits for somebody else: it is looked at again at leisure.
			wait := at.Sub(r.Now())
			if wait <= 0 {
				wait = coolDown
			}
			if again > 0 {
				wait = min(wait, again)
			}
			return ctrl.Result{RequeueAfter: wait}, nil
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
// occupied ones. again is when EC2 may have more to say about the instance; 0 where that would change nothing.
func (r *CleanUp) unconfirmed(ctx context.Context, l *ledgerv1.BranchLedger, coolDown time.Duration) (stored *ledgerv1.BranchLedger, again time.Duration, err error) {
	due := func(s *ledgerv1.Slot) bool {
		return (s.State == ledgerv1.Releasing || s.State == ledgerv1.Occupied) && !r.Now().Before(s.Since.Add(2*coolDown))
	}
	releasing, occupied := time.Time{}, false // when the last one began to wait
	for i := range l.Spec.Slots {
		s := &l.Spec.Slots[i]
		if due(s) && s.State == ledgerv1.Releasing && s.Since.After(releasing) {
			releasing = s.Since.Time
		}
		occupied = occupied || due(s) && s.State == ledgerv1.Occupied
	}
	// An instance that was stopped before a pod ended may have run it since, so the answer must be later than that.
	var state cloud.State
	if releasing.IsZero() {
		r.Asked.Forget(l.Name, trunk.OfSlots)
	} else if state, _, again, err = r.Asked.About(ctx, l.Name, trunk.OfSlots, releasing.UnixNano()); err != nil {
		return l, 0, err
	}
	if releasing.IsZero() && !occupied {
		return l, 0, nil
	}
	agentGone, err := r.agentGone(ctx, l.Spec.NodeName)
	if err != nil {
		return l, 0, err
	}
	// That EC2 does not know an instance may be a passing error: whether it is gone package trunk decides.
	instanceGone, stopped := state == cloud.Terminated, state == cloud.Stopped
	if !agentGone && !instanceGone && !occupied {
		return l, again, nil // whatever EC2 has associated, it would change nothing
	}
	associations, err := r.Cloud.Associations(ctx, l.Spec.TrunkENIID)
	if err != nil {
		return l, 0, err
	}
	onTrunk := map[string]bool{}
	for _, a := range associations {
		onTrunk[a.BranchENIID] = true
	}
	ours := map[string]bool{} // and of no living pod
	if occupied {
		made, err := r.Cloud.OfInstance(ctx, l.Spec.InstanceID)
		if err != nil {
			return l, 0, err
		}
		pods, err := livingPods(ctx, r.Live, client.MatchingFields{"spec.nodeName": l.Spec.NodeName})
		if err != nil {
			return l, 0, err
		}
		for _, e := range made {
			ours[e.ID] = !pods.uses(&e)
		}
	}
	stored, err = r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		changed := false
		for i := range l.Spec.Slots {
			s := &l.Spec.Slots[i]
			if !due(s) {
				continue
			}
			switch {
			case s.State == ledgerv1.Releasing:
				// The slot got here by its pod's end, so that part of the evidence stands.
				e := ledger.Evidence{InstanceGone: instanceGone, PodEnded: true, AgentGone: agentGone, Unwired: stopped || !onTrunk[s.ENIID]}
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
		return nil, 0, client.IgnoreNotFound(err)
	}
	return stored, again, nil
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
// associated has the trunk's associations by branch ENI.
func (r *CleanUp) remove(ctx context.Context, l *ledgerv1.BranchLedger, s *ledgerv1.Slot, associated func() (map[string]string, error)) error {
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
	associationID := s.AssociationID
	if eniID != "" && associationID == "" {
		// It ended while it was made: it may have got as far as the trunk.
		ids, err := associated()
		if err != nil {
			return err
		}
		associationID = ids[eniID]
	}
	if eniID != "" {
		if err := r.Cloud.Remove(ctx, eniID, associationID); err != nil {
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
