package branch

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/ledger"
	"github.com/branchline-cni/branchline/policy"
)

// errNotOurs: what a pod's annotation names is on the trunk, but does not say that it was made for the pod.
var errNotOurs = errors.New("the pod may run with a branch ENI that is not known to be its own: it is left as it is; delete the pod, then its successor gets one of its own")

// adopt takes the branch ENI that the pod's annotation names back into a ledger that has lost it: the pod may run with
// it, so it must be neither replaced nor taken for a leak. It returns nil where the pod has a slot, or EC2 has nothing
// of that name on this trunk, so that nothing can be running with it here. Error: errNotOurs.
func (r *Pods) adopt(ctx context.Context, pod *corev1.Pod, instanceID, eniID string) (*ledgerv1.Slot, error) {
	l, err := r.Ledgers.Get(ctx, instanceID)
	if err != nil || ledger.Of(&l.Spec, pod.UID) != nil {
		return nil, err
	}
	associations, err := r.Cloud.Associations(ctx, l.Spec.TrunkENIID)
	if err != nil {
		return nil, err
	}
	var on *cloud.Association
	for i := range associations {
		if a := &associations[i]; a.BranchENIID == eniID {
			on = a
		}
	}
	if on == nil {
		return nil, nil
	}
	eni, err := r.Cloud.ByID(ctx, eniID)
	if err != nil {
		return nil, err
	}
	if eni == nil || eni.PodUID != string(pod.UID) || on.VLANID < ledgerv1.MinVLANID || on.VLANID > ledgerv1.MaxVLANID {
		return nil, fmt.Errorf("branch ENI %s on VLAN id %d: %w", eniID, on.VLANID, errNotOurs)
	}
	subnet, err := r.subnetOf(ctx, l, eni)
	if err != nil {
		return nil, err
	}
	stored, err := r.Ledgers.Update(ctx, instanceID, func(l *ledgerv1.BranchLedger) error {
		return ledger.Adopt(&l.Spec, ledgerv1.Slot{
			VLANID: on.VLANID, Claim: eni.Claim, PodUID: pod.UID, PodNamespace: pod.Namespace, PodName: pod.Name,
			ENIID: eni.ID, MAC: eni.MAC, PrivateIP: eni.PrivateIP, SubnetCIDR: subnet.CIDR, IPv6Address: eni.IPv6, SubnetIPv6CIDR: ipv6Subnet(eni, subnet),
			SecurityGroups: eni.Groups, AssociationID: on.ID,
		}, r.Now())
	})
	if errors.Is(err, ledger.ErrMoved) {
		return nil, fmt.Errorf("branch ENI %s on VLAN id %d: %w (%w)", eniID, on.VLANID, errNotOurs, err)
	}
	if err != nil {
		return nil, err
	}
	r.Log.WarnContext(ctx, "the ledger had lost a pod's branch ENI: adopted", "pod", client.ObjectKeyFromObject(pod), "uid", pod.UID, "instance", instanceID, "vlan", on.VLANID, "eni", eni.ID)
	return ledger.Of(&stored.Spec, pod.UID), nil
}

// living holds what pods that have not ended may be using, whatever a ledger says.
type living struct {
	uids map[types.UID]bool
	enis map[string]bool
}

// uses says whether a living pod may be wired with the ENI.
func (v *living) uses(e *cloud.ENI) bool { return v.uids[types.UID(e.PodUID)] || v.enis[e.ID] }

// livingPods lists them from the API server itself. The options may narrow it down to a node.
func livingPods(ctx context.Context, live client.Reader, options ...client.ListOption) (*living, error) {
	v := &living{uids: map[types.UID]bool{}, enis: map[string]bool{}}
	var pods corev1.PodList
	for next := ""; ; {
		if err := live.List(ctx, &pods, append(options[:len(options):len(options)], client.Limit(500), client.Continue(next))...); err != nil {
			return nil, fmt.Errorf("list the pods that may use a branch ENI: %w", err)
		}
		for i := range pods.Items {
			p := &pods.Items[i]
			if ended(p) {
				continue
			}
			v.uids[p.UID] = true
			if eniID := named(p.Annotations[policy.Resource]); eniID != "" {
				v.enis[eniID] = true
			}
		}
		if next = pods.Continue; next == "" {
			return v, nil
		}
	}
}
