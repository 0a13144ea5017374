package ipamd

import (
	"context"
	"fmt"
	"time"

	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

// reply is the answer to an executable that is going to wire the sandbox.
func (a *Agent) reply(ctx context.Context, al store.Allocation) (*rpc.AddReply, error) {
	a.noteAsked(al.Key)
	defer a.noteAsked(al.Key) // it may wait for the trunk's link
	if al.Branch != nil {
		began := time.Now()
		defer func() { a.metrics.waited(waitTrunk, began) }()
	}
	return a.answer(ctx, al)
}

func (a *Agent) answer(ctx context.Context, al store.Allocation) (*rpc.AddReply, error) {
	r := &rpc.AddReply{Version: a.opt.Version}
	if al.Regular != nil && !al.Regular.Settled() {
		return nil, fmt.Errorf("%w: pod %s was taken over from the node's former agent with address %s, which no ENI of this node is known to have", podeni.ErrUnavailable, al.Pod, al.Regular.Address)
	}
	if al.Regular != nil {
		r.Interface = &rpc.AddReply_Regular{Regular: a.interfaceOf(*al.Regular)}
		for _, f := range al.Further {
			r.Further = append(r.Further, a.interfaceOf(f))
		}
		return r, nil
	}
	for {
		changed, routed := a.inventory.Changed.C(), a.changed.C()
		t, ok := a.inventory.Trunk()
		b, up := al.Branch, ok && t.LinkIndex != 0 && t.LinkUp
		if up && (b.Standard || a.routedStrictly()) {
			r.Host = a.hostBefore(al)
			r.Interface = &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
				EniId: b.ENIID, Mac: b.MAC, VlanId: uint32(b.VLAN), Address: b.Address.String(), SubnetCidr: subnetText(b.SubnetCIDR),
				Gateway: annotation.Gateway(b.Address, b.SubnetCIDR).String(), TrunkIfindex: uint32(t.LinkIndex), EnforcingMode: modeOf(b),
			}}
			return r, nil
		}
		select {
		case <-changed:
		case <-routed:
		case <-ctx.Done():
			missing := "the trunk's link is not up on this node"
			if up {
				missing = "the host's routing, which keeps it from being reached past its security groups, is not in place: look at the node agent's log"
			}
			return nil, fmt.Errorf("%w: pod %s has branch ENI %s, and %s", podeni.ErrUnavailable, al.Pod, al.Branch.ENIID, missing)
		}
	}
}
