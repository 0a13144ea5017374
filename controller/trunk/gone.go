package trunk

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
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/ledger"
)

var errNoIndex = errors.New("no device index is free for the trunk: the agent keeps one once ENABLE_POD_ENI is on; detach an interface, or replace the node")

// recheck is how often EC2 is asked about an instance whose Node is gone or silent.
const recheck = 30 * time.Second

// Instances watches for instances that are gone. The object's key is the ledger's, that is, the instance's id.
type Instances struct {
	Client client.Client
	// Live bypasses caches: a node's absence is believed only from the API server itself.
	Live    client.Reader
	Cloud   *cloud.Client
	Ledgers *ledger.Store
	Log     *slog.Logger
	// Now defaults to time.Now, Recheck to 30 s.
	Now     func() time.Time
	Recheck time.Duration
}

// Reconcile implements reconcile.Reconciler.
func (r *Instances) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	var l ledgerv1.BranchLedger
	if err := r.Client.Get(ctx, req.NamespacedName, &l); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	for _, read := range []client.Reader{r.Client, r.Live} {
		well, err := registered(ctx, read, &l)
		if err != nil || well {
			return ctrl.Result{}, err
		}
	}
	running, err := r.Cloud.Runs(ctx, l.Spec.InstanceID)
	if err == nil {
		r.Log.InfoContext(ctx, "node is gone or not ready, its instance is not gone: waiting", "node", l.Spec.NodeName, "instance", l.Spec.InstanceID, "running", running)
		after := r.Recheck
		if after == 0 {
			after = recheck
		}
		return ctrl.Result{RequeueAfter: after}, nil
	}
	if !errors.Is(err, cloud.ErrInstanceGone) {
		return ctrl.Result{}, err
	}
	return ctrl.Result{}, r.clear(ctx, &l)
}

// registered says whether a Node of the ledger's instance exists and is not known to be in trouble. Where no cloud
// provider deletes them, Nodes stay behind when their instances go, and then nothing but EC2 tells.
func registered(ctx context.Context, read client.Reader, l *ledgerv1.BranchLedger) (bool, error) {
	var node corev1.Node
	err := read.Get(ctx, client.ObjectKey{Name: l.Spec.NodeName}, &node)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read node %s: %w", l.Spec.NodeName, err)
	}
	id, ok := InstanceID(&node)
	// A node without a provider id may still become this instance's.
	return !ok || id == l.Spec.InstanceID && !silent(&node), nil
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
	for i := range l.Spec.Slots {
		if s := &l.Spec.Slots[i]; s.State == ledgerv1.Deleting && s.ENIID != "" {
			if err := r.Cloud.Remove(ctx, s.ENIID, s.AssociationID); err != nil {
				return err
			}
		}
	}
	left, err := r.Cloud.OfInstance(ctx, l.Spec.InstanceID)
	if err != nil {
		return err
	}
	for _, e := range left {
		if err := r.Cloud.Remove(ctx, e.ID, ""); err != nil {
			return err
		}
	}
	err = r.Client.Delete(ctx, l, client.Preconditions{UID: &l.UID, ResourceVersion: &l.ResourceVersion})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete ledger of %s: %w", l.Name, err)
	}
	r.Log.InfoContext(ctx, "instance is gone and cleared away", "node", l.Spec.NodeName, "instance", l.Name)
	return nil
}
