package branch

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/wait"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/groups"
	"github.com/branchline-cni/branchline/controller/ledger"
	"github.com/branchline-cni/branchline/controller/trunk"
	"github.com/branchline-cni/branchline/policy"
)

// Pods brings each pod that asks for a branch ENI to one, and tells the ledger of each pod's end. The work queue never
// runs one key twice at a time, so a slot in the state Creating has one worker.
type Pods struct {
	Client client.Client
	// Live bypasses caches: a pod's absence is believed only from the API server itself.
	Live    client.Reader
	Cloud   *cloud.Client
	Ledgers *ledger.Store
	Events  *events.Recorder
	Log     *slog.Logger
	Now     func() time.Time
	// CoolDown says when a branch ENI that rests can be had again.
	CoolDown func(context.Context) time.Duration
	// Claim makes a new name for an attempt; it must never repeat.
	Claim func() string
	// Recheck is how often a pod is looked at again that waits for what is not watched; zero means 45 s.
	Recheck time.Duration
}

const recheck = 45 * time.Second

// later spreads the next look at pods that wait, so that they don't come all at once.
func (r *Pods) later() ctrl.Result {
	after := r.Recheck
	if after == 0 {
		after = recheck
	}
	return ctrl.Result{RequeueAfter: wait.Jitter(after*2/3, 2.0/3)}
}

// Reconcile implements reconcile.Reconciler.
func (r *Pods) Reconcile(ctx context.Context, req ctrl.Request) (ctrl.Result, error) {
	pod := &corev1.Pod{}
	err := r.Client.Get(ctx, req.NamespacedName, pod)
	if apierrors.IsNotFound(err) {
		pod = nil
	} else if err != nil {
		return ctrl.Result{}, fmt.Errorf("read pod %s: %w", req.NamespacedName, err)
	}
	if err := r.end(ctx, req.NamespacedName, pod); err != nil {
		return ctrl.Result{}, err
	}
	if pod == nil || ended(pod) || !pod.DeletionTimestamp.IsZero() || !policy.WantsBranch(pod) || pod.Spec.HostNetwork || policy.OnFargate(pod) {
		return ctrl.Result{}, nil
	}
	if pod.Spec.NodeName == "" {
		return r.unscheduled(ctx, pod)
	}
	return r.assign(ctx, pod)
}

// ended says whether the pod has run to its end: its containers never start again.
func ended(pod *corev1.Pod) bool {
	return pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// end takes note, in every ledger that has a slot under the pod's name, of pods that have ended. pod is nil when the
// cache has none of this name.
func (r *Pods) end(ctx context.Context, key types.NamespacedName, pod *corev1.Pod) error {
	var ledgers ledgerv1.BranchLedgerList
	if err := r.Client.List(ctx, &ledgers, client.MatchingFields{IndexSlotPod: key.String()}); err != nil {
		return fmt.Errorf("look up the ledgers of pod %s: %w", key, err)
	}
	for i := range ledgers.Items {
		l := &ledgers.Items[i]
		for n := range l.Spec.Slots {
			slot := &l.Spec.Slots[n]
			if slot.PodNamespace != key.Namespace || slot.PodName != key.Name || slot.State != ledgerv1.Creating && slot.State != ledgerv1.Bound {
				continue
			}
			over, err := r.over(ctx, key, slot, pod)
			if err != nil {
				return err
			}
			if !over {
				continue
			}
			_, err = r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
				if !ledger.End(&l.Spec, slot.PodUID, r.Now()) {
					return ledger.ErrUnchanged
				}
				return nil
			})
			if client.IgnoreNotFound(err) != nil {
				return err
			}
			r.Log.InfoContext(ctx, "pod has ended", "pod", key, "uid", slot.PodUID, "instance", l.Name, "vlan", slot.VLANID, "eni", slot.ENIID)
		}
	}
	return nil
}

// over says whether the slot's pod has ended. Absence from the cache proves nothing: it may lag behind the ledger.
func (r *Pods) over(ctx context.Context, key types.NamespacedName, slot *ledgerv1.Slot, pod *corev1.Pod) (bool, error) {
	if pod == nil || pod.UID != slot.PodUID {
		pod = &corev1.Pod{}
		err := r.Live.Get(ctx, key, pod)
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, fmt.Errorf("ask for pod %s: %w", key, err)
		}
	}
	if pod.UID != slot.PodUID || ended(pod) {
		return true, nil
	}
	// A pod that is being deleted while its ENI is made never sees it.
	return slot.State == ledgerv1.Creating && !pod.DeletionTimestamp.IsZero(), nil
}

// assign brings the pod to its branch ENI and the pod's annotation to what the ledger says.
func (r *Pods) assign(ctx context.Context, pod *corev1.Pod) (ctrl.Result, error) {
	var node corev1.Node
	if err := r.Client.Get(ctx, client.ObjectKey{Name: pod.Spec.NodeName}, &node); err != nil {
		return ctrl.Result{}, client.IgnoreNotFound(err) // the node's ledger brings the pod back here
	}
	id, ok := trunk.InstanceID(&node)
	if !ok {
		return ctrl.Result{}, nil
	}
	var l ledgerv1.BranchLedger
	if err := r.Client.Get(ctx, client.ObjectKey{Name: id}, &l); err != nil || l.Spec.TrunkENIID == "" || l.Spec.NodeName != node.Name {
		if client.IgnoreNotFound(err) == nil {
			r.Events.Warn(pod, "WaitingForTrunk", "node %s has no trunk ENI (yet): is ENABLE_POD_ENI on, and can its instance type carry one? The node's events say more", node.Name)
		}
		return ctrl.Result{}, client.IgnoreNotFound(err)
	}
	slot := ledger.Of(&l.Spec, pod.UID)
	if slot == nil || slot.State != ledgerv1.Bound {
		var err error
		if slot, err = r.bind(ctx, pod, &l); err != nil || slot == nil {
			return r.failed(ctx, pod, &l, err)
		}
	}
	return ctrl.Result{}, r.mirror(ctx, pod, slot)
}

// bind takes the pod from wherever the ledger has it to the state Bound. It returns nil without an error where no policy
// selects the pod.
func (r *Pods) bind(ctx context.Context, pod *corev1.Pod, l *ledgerv1.BranchLedger) (*ledgerv1.Slot, error) {
	if eniID := named(pod.Annotations[policy.Resource]); eniID != "" {
		if slot, err := r.adopt(ctx, pod, l.Name, eniID); err != nil || slot != nil {
			return slot, err
		}
	}
	groups, err := r.groups(ctx, pod)
	if err != nil || groups == nil {
		return nil, err
	}
	claim, fresh, superseded := r.Claim(), false, false
	stored, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		fresh, superseded = false, false
		if have := ledger.Of(&l.Spec, pod.UID); have != nil && (have.State == ledgerv1.Creating || have.State == ledgerv1.Bound) {
			if superseded = ledger.Supersede(&l.Spec, pod.UID, groups, r.Now()); superseded {
				return nil
			}
			return ledger.ErrUnchanged
		}
		fresh = true
		_, err := ledger.Assign(&l.Spec, ledger.Pod{UID: pod.UID, Namespace: pod.Namespace, Name: pod.Name}, groups, claim, r.Now())
		return err
	})
	if err != nil {
		return nil, err
	}
	if superseded {
		return nil, fmt.Errorf("%w: the policies' groups for pod %s/%s have changed", ledger.ErrMoved, pod.Namespace, pod.Name)
	}
	slot := ledger.Of(&stored.Spec, pod.UID)
	if slot.State == ledgerv1.Bound {
		return slot, nil
	}
	return r.make(ctx, pod, stored, slot, fresh)
}

// groups returns the security groups that the policies give the pod; nil where none selects it, which is said. They hold
// for the pod's life, so the policies are read live: the cache's watch of them may lag behind that of pods.
func (r *Pods) groups(ctx context.Context, pod *corev1.Pod) ([]string, error) {
	d, err := groups.Of(ctx, r.Live, r.Live, pod)
	if err != nil {
		return nil, err
	}
	for _, err := range d.Invalid {
		r.Events.Warn(pod, "InvalidSecurityGroupPolicy", "%v", err)
	}
	if len(d.Groups) == 0 {
		r.Events.Warn(pod, "NoSecurityGroupPolicy", "the pod asks for %s, but no SecurityGroupPolicy of namespace %s selects it: add one, or remove the request; it gets no branch ENI until then", policy.Resource, pod.Namespace)
		return nil, nil
	}
	return d.Groups, nil
}

// failed says to the pod why it has no branch ENI, and when it is tried again.
func (r *Pods) failed(ctx context.Context, pod *corev1.Pod, l *ledgerv1.BranchLedger, err error) (ctrl.Result, error) {
	switch {
	case err == nil:
		// No policy selects it. ServiceAccounts, whose labels may, are not watched.
		return r.later(), nil
	case errors.Is(err, errNotOurs):
		r.Events.Warn(pod, "BranchENIUnknown", "%v", err)
		return r.later(), nil
	case errors.Is(err, ledger.ErrFull):
		// Freed slots come through the ledger's watch.
		r.Events.Warn(pod, "BranchENIsInUse", "%s", say([]usage{usageOf(&l.Spec, nil, r.CoolDown(ctx))}, 0))
		return ctrl.Result{}, nil
	case errors.Is(err, ledger.ErrMoved):
		// Whoever moved it wrote the ledger, and its watch brings the pod back.
		return ctrl.Result{}, nil
	case apierrors.IsNotFound(err):
		return ctrl.Result{}, nil // the ledger or the pod is gone; its watch has the next word
	}
	var e *cloud.Error
	if errors.As(err, &e) {
		reason, message := cloud.Explain(err)
		r.Events.Warn(pod, reason, "branch ENI: %s", message)
	}
	return ctrl.Result{}, err
}

// mirror writes the slot into the pod's annotation.
func (r *Pods) mirror(ctx context.Context, pod *corev1.Pod, slot *ledgerv1.Slot) error {
	value, err := annotation(slot)
	if err != nil {
		return err
	}
	if pod.Annotations[policy.Resource] == value {
		return nil
	}
	patch, err := annotate(pod.UID, value)
	if err != nil {
		return err
	}
	err = r.Client.Patch(ctx, pod.DeepCopy(), client.RawPatch(types.MergePatchType, patch))
	if apierrors.IsNotFound(err) || apierrors.IsConflict(err) {
		return nil // the pod is gone, or another one has its name: its event tells the ledger
	}
	if err != nil {
		r.Events.Warn(pod, "AnnotationRefused", "branch ENI %s is ready, but the annotation %s can't be written: does another admission webhook or policy forbid it?", slot.ENIID, policy.Resource)
		return fmt.Errorf("annotate pod %s/%s with branch ENI %s: %w", pod.Namespace, pod.Name, slot.ENIID, err)
	}
	r.Events.Normal(pod, "ResourceAllocated", "branch ENI %s with security groups %v, address %s, VLAN id %d", slot.ENIID, slot.SecurityGroups, addresses(slot), slot.VLANID)
	r.Log.InfoContext(ctx, "pod has its branch ENI", "pod", client.ObjectKeyFromObject(pod), "uid", pod.UID, "eni", slot.ENIID, "vlan", slot.VLANID)
	return nil
}
