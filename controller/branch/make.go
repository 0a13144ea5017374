package branch

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// make turns a slot's intent into an associated branch ENI, from wherever an earlier attempt was cut off. fresh says that
// the intent was written just now, so that nothing can be left of an earlier attempt.
func (r *Pods) make(ctx context.Context, pod *corev1.Pod, l *ledgerv1.BranchLedger, slot *ledgerv1.Slot, fresh bool) (*ledgerv1.Slot, error) {
	if slot.ENIID == "" {
		var err error
		if slot, err = r.create(ctx, l, slot, fresh); err != nil {
			return nil, err
		}
	}
	err := r.Cloud.Permit(ctx, slot.ENIID, l.Spec.AccountID)
	if errors.Is(err, cloud.ErrENIGone) {
		return nil, r.lost(ctx, l.Name, slot, err)
	}
	if err != nil {
		return nil, err
	}
	association, err := r.Cloud.Associate(ctx, slot.ENIID, l.Spec.TrunkENIID, slot.VLANID, slot.Claim)
	var taken *cloud.VLANTakenError
	switch {
	case errors.As(err, &taken):
		return nil, r.occupied(ctx, pod, l.Name, slot, taken)
	case errors.Is(err, cloud.ErrENIGone):
		return nil, r.lost(ctx, l.Name, slot, err)
	case err != nil:
		return nil, err
	}
	// The calls to EC2 may have taken long: a policy that came meanwhile counts, as it would for a pod made now.
	groups, err := r.groups(ctx, pod)
	if err != nil {
		return nil, err
	}
	superseded := false
	stored, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		if superseded = len(groups) > 0 && ledger.Supersede(&l.Spec, pod.UID, groups, r.Now()); superseded {
			return nil
		}
		return ledger.Bind(&l.Spec, slot.VLANID, pod.UID, association, r.Now())
	})
	if err != nil {
		return nil, err
	}
	if superseded {
		return nil, fmt.Errorf("%w: the policies' groups for pod %s/%s have changed", ledger.ErrMoved, pod.Namespace, pod.Name)
	}
	return ledger.Of(&stored.Spec, pod.UID), nil
}

// create finds the ENI of the slot's claim or makes it, and writes it into the ledger.
func (r *Pods) create(ctx context.Context, l *ledgerv1.BranchLedger, slot *ledgerv1.Slot, fresh bool) (*ledgerv1.Slot, error) {
	var eni *cloud.ENI
	var err error
	if !fresh {
		if eni, err = r.Cloud.ByClaim(ctx, slot.Claim); err != nil {
			return nil, err
		}
	}
	if eni == nil {
		subnet := l.Spec.BranchSubnet()
		tags, err := r.tags(ctx, l.Spec.NodeName)
		if err != nil {
			return nil, err
		}
		if eni, err = r.Cloud.CreateBranch(ctx, cloud.Branch{
			InstanceID: l.Spec.InstanceID, SubnetID: subnet.ID, TrunkENIID: l.Spec.TrunkENIID, VLANID: slot.VLANID,
			Claim: slot.Claim, PodUID: string(slot.PodUID), Groups: slot.SecurityGroups, At: slot.Since.Time, IPv6: subnet.IPv6CIDR != "", Tags: tags,
		}); aws.Code(err) == aws.CodeIdempotentMismatch {
			// The tags were changed since an attempt of this name, whose ENI EC2 does not show, or no more.
			return nil, r.lost(ctx, l.Name, slot, err)
		} else if err != nil {
			return nil, err
		}
	}
	subnet, err := r.subnetOf(ctx, l, eni)
	if err != nil {
		return nil, err
	}
	stored, err := r.Ledgers.Update(ctx, l.Name, func(l *ledgerv1.BranchLedger) error {
		return ledger.Made(&l.Spec, slot.VLANID, slot.Claim, ledger.ENI{
			ID: eni.ID, MAC: eni.MAC, PrivateIP: eni.PrivateIP, SubnetCIDR: subnet.CIDR, IPv6: eni.IPv6, SubnetIPv6CIDR: ipv6Subnet(eni, subnet),
		})
	})
	if errors.Is(err, ledger.ErrMoved) {
		return nil, errors.Join(err, r.unwanted(ctx, l.Name, slot.Claim, eni.ID))
	}
	if err != nil {
		return nil, err
	}
	return ledger.Slot(&stored.Spec, slot.VLANID), nil
}

// tags are what the node's CNINode says that its ENIs are to have.
func (r *Pods) tags(ctx context.Context, node string) (map[string]string, error) {
	var n v1alpha1.CNINode
	if err := r.Client.Get(ctx, client.ObjectKey{Name: node}, &n); client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("read the tags of CNINode %s: %w", node, err)
	}
	if keys := cloud.UnusableTags(n.Spec.Tags); len(keys) > 0 {
		r.Log.WarnContext(ctx, "EC2 does not take some tags of the CNINode: the branch ENI is made without", "node", node, "tags", keys)
	}
	return n.Spec.Tags, nil
}

// subnetOf is the subnet that a branch ENI is in. That is the one in which they are made now, unless the node's ENIConfig has
// changed since.
func (r *Pods) subnetOf(ctx context.Context, l *ledgerv1.BranchLedger, eni *cloud.ENI) (ledgerv1.Subnet, error) {
	now, primary := l.Spec.BranchSubnet(), l.Spec.PrimarySubnet()
	switch eni.SubnetID {
	case now.ID, "":
		return now, nil
	case primary.ID:
		return primary, nil
	}
	subnets, err := r.Cloud.Subnets(ctx, eni.SubnetID)
	s := subnets[eni.SubnetID]
	return ledgerv1.Subnet{ID: s.ID, CIDR: s.CIDR, IPv6CIDR: s.IPv6CIDR}, err
}

// unwanted deletes an ENI whose slot was sent away while it was made, perhaps before it could be seen. Where a slot names it
// or its claim, another controller has taken the attempt over, and a pod may be using it by now; unless that slot is being
// deleted too, perhaps by somebody who could not see the ENI.
func (r *Pods) unwanted(ctx context.Context, instanceID, claim, eniID string) error {
	l, err := r.Ledgers.Get(ctx, instanceID)
	if client.IgnoreNotFound(err) != nil {
		return err // the sweep finds it
	}
	if err == nil && slices.ContainsFunc(l.Spec.Slots, func(s ledgerv1.Slot) bool {
		return s.State != ledgerv1.Deleting && (s.ENIID == eniID || s.Claim == claim)
	}) {
		return nil
	}
	return r.Cloud.Delete(ctx, eniID)
}

// lost sends a slot away whose ENI can't be had any more, as somebody has deleted it; the pod gets another one.
func (r *Pods) lost(ctx context.Context, instanceID string, slot *ledgerv1.Slot, cause error) error {
	_, err := r.Ledgers.Update(ctx, instanceID, func(l *ledgerv1.BranchLedger) error {
		if !ledger.End(&l.Spec, slot.PodUID, r.Now()) {
			return ledger.ErrUnchanged
		}
		return nil
	})
	if err != nil {
		return errors.Join(err, cause) // nothing is written, and nobody's watch brings the pod back
	}
	return fmt.Errorf("%w: start over: %w", ledger.ErrMoved, cause)
}

// occupied learns that EC2 has another ENI on the slot's VLAN id. The pod's own ENI goes first: its tags name the VLAN id.
func (r *Pods) occupied(ctx context.Context, pod *corev1.Pod, instanceID string, slot *ledgerv1.Slot, taken *cloud.VLANTakenError) error {
	if err := r.Cloud.Delete(ctx, slot.ENIID); err != nil {
		return err
	}
	_, err := r.Ledgers.Update(ctx, instanceID, func(l *ledgerv1.BranchLedger) error {
		return ledger.Occupy(&l.Spec, slot.VLANID, pod.UID, taken.By.BranchENIID, taken.By.ID, r.Now())
	})
	if err != nil {
		return err
	}
	r.Events.Warn(pod, "VLANInUse", "EC2 has branch ENI %s on VLAN id %d of trunk %s, which the ledger did not know: the pod gets another VLAN id", taken.By.BranchENIID, taken.By.VLANID, taken.By.TrunkENIID)
	return fmt.Errorf("%w: %w", ledger.ErrMoved, taken)
}
