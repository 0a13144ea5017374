package trunk

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
)

var errNoIndex = errors.New("no device index is free for the trunk: the agent keeps one once ENABLE_POD_ENI is on; detach an interface, or replace the node")

// recheck is how soon EC2 is asked again about an instance whose Node is gone or silent, at first.
const recheck = 30 * time.Second

// Instances watches for instances that are gone. The object's key is the ledger's, that is, the instance's id.
type Instances struct {
	Client client.Client
	// Live bypasses caches: a node's absence is believed only from the API server itself.
	Live    client.Reader
	Cloud   *cloud.Client
	Ledgers *ledger.Store
	Events  *events.Recorder
	Log     *slog.Logger
	// Now defaults to time.Now.
	Now   func() time.Time
	Asked *Asked
}

// Reconcile implements reconcile.Reconciler.
func (r *Instances) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var l ledgerv1.BranchLedger
	if err := r.Client.Get(ctx, req.NamespacedName, &l); err != nil {
		if apierrors.IsNotFound(err) {
			r.Asked.Forget(req.Name, OfNode)
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	exists := false
	for _, read := range []client.Reader{r.Client, r.Live} {
		there, well, err := registered(ctx, read, &l)
		if err != nil {
			return ctrl.Result{}, err
		}
		if well {
			r.Asked.Forget(l.Name, OfNode)
			return ctrl.Result{}, nil
		}
		exists = there
	}
	state, known, again, err := r.Asked.About(ctx, l.Name, OfNode, exists)
	if err != nil {
		return ctrl.Result{}, err
	}
	gone := known && state == cloud.Terminated
	if known && state == cloud.Unknown && !exists {
		// An attached trunk speaks for an instance that EC2 seems not to know.
		attached, err := r.attached(ctx, &l)
		if err != nil {
			return ctrl.Result{}, err
		}
		gone = !attached
	}
	if gone {
		if err := r.clear(ctx, &l); err != nil {
			return ctrl.Result{}, err
		}
		r.Asked.Forget(l.Name, OfNode)
		return ctrl.Result{}, nil
	}
	if known {
		r.Log.InfoContext(ctx, "node is gone or not ready, its instance is not known to be gone: waiting", "node", l.Spec.NodeName, "instance", l.Spec.InstanceID, "inEC2", state != cloud.Unknown)
	}
	if known && state == cloud.Unknown {
		r.tell(ctx, &l)
	}
	return ctrl.Result{RequeueAfter: again}, nil
}

func (r *Instances) attached(ctx context.Context, l *ledgerv1.BranchLedger) (bool, error) {
	made, err := r.Cloud.OfInstance(ctx, l.Spec.InstanceID)
	return slices.ContainsFunc(made, func(e cloud.ENI) bool { return e.Description == cloud.TrunkDescription && e.InUse }), err
}

func (r *Instances) tell(ctx context.Context, l *ledgerv1.BranchLedger) {
	var node corev1.Node
	if err := r.Client.Get(ctx, client.ObjectKey{Name: l.Spec.NodeName}, &node); err != nil {
		return // nobody to tell; the log has it
	}
	r.Events.Warn(&node, "InstanceUnknown", "this node is not ready, and EC2 does not know its instance %s, nor says that it is terminated: its branch ENIs are kept; delete the Node if the instance is gone", l.Spec.InstanceID)
}

// registered says whether a Node of the ledger's instance exists, and whether one does that is not known to be in
// trouble. Where no cloud provider deletes them, Nodes stay behind when their instances go; then EC2 has to say of the
// instance that it is terminated: it may not know it for a moment, while the node, cut off, serves its pods.
func registered(ctx context.Context, read client.Reader, l *ledgerv1.BranchLedger) (exists, well bool, err error) {
	var node corev1.Node
	err = read.Get(ctx, client.ObjectKey{Name: l.Spec.NodeName}, &node)
	if apierrors.IsNotFound(err) {
		return false, false, nil
	}
	if err != nil {
		return false, false, fmt.Errorf("read node %s: %w", l.Spec.NodeName, err)
	}
	id, ok := InstanceID(&node)
	// A node without a provider id may still become this instance's.
	exists = !ok || id == l.Spec.InstanceID
	return exists, exists && (!ok || !silent(&node)), nil
}

// clear deletes what EC2 has left of an instance that is gone, then its ledger. The slots are sent to their deletion
// first, so that nobody makes anything for them meanwhile.
func (r *Instances) clear(ctx context.Context, l *ledgerv1.BranchLedger) error {
	now := time.Now
	if r.Now != nil {
		now = r.Now
	}
	l, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		if !ledger.Gone(&l.Spec, now()) && l.Spec.Capacity == 0 {
			return ledger.ErrUnchanged
		}
		l.Spec.Capacity = 0
		return nil
	})
	if err != nil {
		return client.IgnoreNotFound(err)
	}
	if err := r.remove(ctx, l); err != nil {
		return err
	}
	err = r.Client.Delete(ctx, l, client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete ledger of %s: %w", l.Name, err)
	}
	_, err = r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		if !controllerutil.RemoveFinalizer(l, ledgerv1.Finalizer) {
			return ledger.ErrUnchanged
		}
		return nil
	})
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("let go of the ledger of %s: %w", l.Name, err)
	}
	r.Log.InfoContext(ctx, "instance is gone and cleared away", "node", l.Spec.NodeName, "instance", l.Name)
	return nil
}

// remove deletes the instance's ENIs: those that the ledger knows and those that it does not.
func (r *Instances) remove(ctx context.Context, l *ledgerv1.BranchLedger) error {
	left, err := r.Cloud.OfInstance(ctx, l.Spec.InstanceID)
	if err != nil {
		return err
	}
	associations, trunks := map[string]string{}, []string{l.Spec.TrunkENIID}
	for i := range l.Spec.Slots {
		if s := &l.Spec.Slots[i]; s.State == ledgerv1.Deleting && s.ENIID != "" {
			associations[s.ENIID] = s.AssociationID
		}
	}
	for i := range left {
		if e := &left[i]; associations[e.ID] == "" {
			associations[e.ID] = ""
			trunks = append(trunks, e.TrunkENIID)
		}
	}
	unknown := func(id string) bool { return associations[id] == "" && id != l.Spec.TrunkENIID }
	if enis := slices.Collect(maps.Keys(associations)); slices.ContainsFunc(enis, unknown) {
		listed, err := r.Cloud.AssociationIDs(ctx, trunks)
		if err != nil {
			return err
		}
		for _, id := range enis {
			associations[id] = cmp.Or(associations[id], listed[id])
		}
	}
	for _, id := range slices.Sorted(maps.Keys(associations)) {
		if err := r.Cloud.Remove(ctx, id, associations[id]); err != nil {
			return err
		}
	}
	return nil
}
