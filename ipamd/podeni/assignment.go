package podeni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
)

// Ledgers is where the branch ledger is read (kube.ErrNoLedgers where nobody keeps any, kube.ErrNoLedger where
// this instance has none, kube.ErrNotSynced while unknown).
type Ledgers interface {
	Ledger() (*ledgerv1.BranchLedger, error)
}

// Assignments waits for what the control plane assigns to pods.
type Assignments struct {
	Pods    Pods
	Ledgers Ledgers
	Guard   *Guard // compares the branch ENI's groups with the policies; nil: nobody does
	// Groups tells a branch ENI's groups where there is no ledger; nil: EC2 is never asked.
	Groups *BranchGroups
	IPv6   bool // pods have IPv6 addresses
	Trunk  func() (enis.ENI, bool)
	// PodsChanged and TrunkChanged are taken before the state is looked at.
	PodsChanged, TrunkChanged func() <-chan struct{}
}

// Wait returns the branch ENI that is assigned to the pod, and the trunk that carries it, as soon as both are there and
// the ledger says the same; where there is none, EC2 is asked for the ENI's groups. A malformed annotation is refused at
// once (ErrRefused); what has not come when ctx ends is ErrUnavailable (the trunk) or ErrLate, with the reason.
func (a *Assignments) Wait(ctx context.Context, pod kube.Pod) (annotation.BranchENI, enis.ENI, error) {
	compared := comparison{a: a, pod: pod}
	seen := false
	for {
		podsChanged, trunkChanged := a.PodsChanged(), a.TrunkChanged()
		now, ok := a.Pods.Pod(pod.Namespace, pod.Name)
		switch {
		case ok && now.UID == pod.UID:
			pod, seen = now, true
		case seen && a.Pods.PodsSynced():
			return annotation.BranchENI{}, enis.ENI{}, fmt.Errorf("%w: pod %s/%s (%s) is gone", ErrUnknown, pod.Namespace, pod.Name, pod.UID)
		}
		b, trunk, err := a.look(ctx, pod, &compared)
		if err == nil || errors.Is(err, ErrRefused) || compared.hopeless {
			return b, trunk, err
		}
		select {
		case <-podsChanged:
		case <-trunkChanged:
		case <-compared.again(err):
		case <-ctx.Done():
			return b, trunk, err
		}
	}
}

func (a *Assignments) look(ctx context.Context, pod kube.Pod, compared *comparison) (b annotation.BranchENI, trunk enis.ENI, err error) {
	name := pod.Namespace + "/" + pod.Name
	if pod.Annotation == "" {
		return b, trunk, fmt.Errorf("%w: pod %s requests %s and has no annotation %s yet; the VPC resource controller writes it once the pod has its branch ENI: look at the pod's events and at the controller", ErrLate, name, annotation.Key, annotation.Key)
	}
	if b, err = annotation.Parse(pod.Annotation, a.IPv6); err != nil {
		return b, trunk, fmt.Errorf("%w: pod %s: %w", ErrRefused, name, err)
	}
	err = a.checkLedger(ctx, pod, b, compared)
	noLedger := errors.Is(err, kube.ErrNoLedgers)
	if err != nil && !noLedger {
		return b, trunk, fmt.Errorf("pod %s: %w", name, err)
	}
	trunk, ok := a.Trunk()
	switch {
	case !ok:
		return b, trunk, fmt.Errorf("%w: pod %s needs the trunk ENI, which is not attached to this instance yet: look at the events of this node and at the VPC resource controller", ErrUnavailable, name)
	case trunk.LinkIndex == 0 || !trunk.LinkUp:
		return b, trunk, fmt.Errorf("%w: pod %s needs the trunk ENI %s, whose link (MAC %s) is not up on this node yet", ErrUnavailable, name, trunk.ID, trunk.MAC)
	}
	if noLedger && a.Guard != nil && a.Groups != nil {
		if err := compared.check(ctx, b.ENIID); err != nil {
			return b, trunk, fmt.Errorf("pod %s: %w", name, err)
		}
	}
	return b, trunk, nil
}

// checkLedger compares the annotation with the durable truth. A mismatch may be one watch running ahead of the other,
// so it is waited out, never wired. kube.ErrNoLedgers is as it is: where nobody keeps any there is nothing to compare with.
func (a *Assignments) checkLedger(ctx context.Context, pod kube.Pod, b annotation.BranchENI, compared *comparison) error {
	l, err := a.Ledgers.Ledger()
	switch {
	case errors.Is(err, kube.ErrNoLedgers):
		return err
	case errors.Is(err, kube.ErrNoLedger):
		return fmt.Errorf("%w: this cluster keeps branch ledgers and this instance has none, which the VPC resource controller makes with the trunk: look at the controller (where EKS runs it, remove the CustomResourceDefinition branchledgers.branchline.dev)", ErrUnavailable)
	}
	if err != nil {
		return fmt.Errorf("%w: the branch ledger can't be read: %w", ErrUnavailable, err)
	}
	i := slices.IndexFunc(l.Spec.Slots, func(s ledgerv1.Slot) bool { return int(s.VLANID) == b.VLAN })
	if i < 0 {
		return fmt.Errorf("%w: branch ledger %s does not know VLAN %d of the annotation", ErrLate, l.Name, b.VLAN)
	}
	s := l.Spec.Slots[i]
	switch {
	case s.State != ledgerv1.Bound || string(s.PodUID) != pod.UID:
		return fmt.Errorf("%w: in branch ledger %s VLAN %d is %s for pod UID %q, this pod's is %q", ErrLate, l.Name, b.VLAN, s.State, s.PodUID, pod.UID)
	case s.ENIID != b.ENIID || differs(s, b) || s.MAC != "" && !strings.EqualFold(s.MAC, b.MAC.String()):
		return fmt.Errorf("%w: branch ledger %s has %s (%s, %s) on VLAN %d, the annotation says %s (%s, %s)", ErrLate, l.Name, s.ENIID, s.MAC, addressIn(s, b), b.VLAN, b.ENIID, b.MAC, b.Address)
	case len(s.SecurityGroups) == 0:
		return fmt.Errorf("%w: branch ledger %s names no security group for %s", ErrLate, l.Name, b.ENIID)
	}
	if a.Guard == nil {
		return nil
	}
	return a.Guard.Branch(pod, s.SecurityGroups, func() (map[string]string, error) { return compared.account(ctx) })
}
