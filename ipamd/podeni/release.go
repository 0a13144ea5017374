package podeni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// Memory is what the node remembers of its branch pods.
type Memory interface {
	View() store.View
	Release(store.Released) (store.Released, error)
	Forget(podUID string) error
}

// LedgerStatus is where releases are confirmed.
type LedgerStatus interface {
	Ledgers
	EditReleased(ctx context.Context, edit func([]ledgerv1.Released, *ledgerv1.BranchLedger) ([]ledgerv1.Released, bool)) error
}

// Releaser tells the ledger of pods of which nothing is left on this node. Four things have to agree: the pod is over
// (the API server knows it no more, or it will run no container again), no sandbox of it is remembered, no VLAN link of
// its id is in the kernel, and the store has noted that it is never wired again.
type Releaser struct {
	Pods   Pods
	Memory Memory
	Ledger LedgerStatus
	// VLANs returns the VLAN ids of the links that are there.
	VLANs func(ctx context.Context) (map[int]bool, error)
	Now   func() time.Time
}

// Reconcile confirms what can be confirmed now. Call it again when anything changed, and after an error.
func (r *Releaser) Reconcile(ctx context.Context) error {
	l, err := r.Ledger.Ledger()
	if errors.Is(err, kube.ErrNoLedgers) || errors.Is(err, kube.ErrNoLedger) || errors.Is(err, kube.ErrNotSynced) || !r.Pods.PodsSynced() {
		return nil
	}
	if err != nil {
		return err
	}
	if err := r.note(ctx, l); err != nil {
		return err
	}
	pending := r.Memory.View().Released
	if slices.Equal(released(l, pending, l.Status.Released), l.Status.Released) {
		return r.forget(l, pending)
	}
	err = r.Ledger.EditReleased(ctx, func(have []ledgerv1.Released, now *ledgerv1.BranchLedger) ([]ledgerv1.Released, bool) {
		next := released(now, pending, have)
		return next, !slices.Equal(next, have)
	})
	if errors.Is(err, kube.ErrNoLedger) {
		return nil
	}
	return err
}

// note puts what has newly ended into the store.
func (r *Releaser) note(ctx context.Context, l *ledgerv1.BranchLedger) error {
	view := r.Memory.View()
	var candidates []ledgerv1.Slot
	for _, s := range l.Spec.Slots {
		if s.PodUID == "" || s.State != ledgerv1.Bound && s.State != ledgerv1.Releasing ||
			slices.ContainsFunc(view.Released, func(o store.Released) bool { return o.PodUID == string(s.PodUID) }) ||
			slices.ContainsFunc(view.Allocations, func(a store.Allocation) bool { return a.Branch != nil && a.Pod.UID == string(s.PodUID) }) {
			continue
		}
		if p, ok := r.Pods.Pod(s.PodNamespace, s.PodName); ok && p.UID == string(s.PodUID) && !p.Ended {
			continue
		}
		candidates = append(candidates, s)
	}
	if len(candidates) == 0 {
		return nil
	}
	vlans, err := r.VLANs(ctx)
	if err != nil {
		return err
	}
	for _, s := range candidates {
		if vlans[int(s.VLANID)] {
			continue // its link's going wakes us
		}
		// The ledger's watch may run ahead of the pods': only the API server's own word ends a pod.
		p, err := r.Pods.LivePod(ctx, s.PodNamespace, s.PodName)
		if err != nil && !errors.Is(err, kube.ErrNoPod) {
			return fmt.Errorf("find out whether pod %s/%s (%s) has ended: %w", s.PodNamespace, s.PodName, s.PodUID, err)
		}
		if err == nil && p.UID == string(s.PodUID) && !p.Ended {
			continue
		}
		_, err = r.Memory.Release(store.Released{PodUID: string(s.PodUID), VLAN: int(s.VLANID), ENIID: s.ENIID, At: r.Now().UTC().Truncate(time.Microsecond)})
		if err != nil && !errors.Is(err, store.ErrInUse) {
			return err
		}
	}
	return nil
}

// released is what the ledger's status should hold: of what it holds and of what we have to say, the part whose pod a
// slot still names, sorted by pod.
func released(l *ledgerv1.BranchLedger, pending []store.Released, have []ledgerv1.Released) []ledgerv1.Released {
	var out []ledgerv1.Released
	for _, h := range have {
		if names(l, string(h.PodUID)) {
			out = append(out, h)
		}
	}
	for _, p := range pending {
		known := slices.ContainsFunc(out, func(h ledgerv1.Released) bool { return string(h.PodUID) == p.PodUID })
		if names(l, p.PodUID) && !known {
			out = append(out, ledgerv1.Released{PodUID: types.UID(p.PodUID), VLANID: int32(p.VLAN), ENIID: p.ENIID, ReleasedAt: metav1.NewMicroTime(p.At)})
		}
	}
	return out
}

func names(l *ledgerv1.BranchLedger, uid string) bool {
	return slices.ContainsFunc(l.Spec.Slots, func(s ledgerv1.Slot) bool { return string(s.PodUID) == uid })
}

// forget drops what the ledger has heard and done with.
func (r *Releaser) forget(l *ledgerv1.BranchLedger, pending []store.Released) error {
	var errs []error
	for _, p := range pending {
		if !names(l, p.PodUID) {
			errs = append(errs, r.Memory.Forget(p.PodUID))
		}
	}
	return errors.Join(errs...)
}
