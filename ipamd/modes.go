package ipamd

import (
	"context"
	"net/netip"
	"slices"

	"google.golang.org/protobuf/proto"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

func modeOf(b *store.Branch) rpc.EnforcingMode {
	if b.Standard {
		return rpc.EnforcingMode_ENFORCING_MODE_STANDARD
	}
	return rpc.EnforcingMode_ENFORCING_MODE_STRICT
}

func subnetText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func isStrict(al store.Allocation) bool { return al.Branch != nil && !al.Branch.Standard }

// strictPods says whether strict branch pods are on this node, or may come: what strict mode changes on the host stays
// until neither is so. Pods keep the mode that they were wired in, so it isn't the configuration's word alone. VLAN links
// that nobody remembers, and that don't say otherwise themselves, are taken for strict pods'.
func (a *Agent) strictPods(ctx context.Context) (bool, error) {
	if a.opt.Config.StrictBranchPods() && a.supported() {
		return true, nil
	}
	if slices.ContainsFunc(a.store.View().Allocations, isStrict) {
		return true, nil
	}
	marked, err := a.opt.Links.Marked(ctx)
	if err != nil {
		return true, err
	}
	for id := range marked.VLANs {
		if !marked.Standard[id] {
			return true, nil
		}
	}
	return false, nil
}

// hostBefore is what the executable is to set before it wires the pod: the answers of a strict branch pod to kubelet's
// probes must not be handed to kubelet's sockets before they are routed. The init container does the same for pods that
// are expected; this also holds after a switch of modes.
func (a *Agent) hostBefore(al store.Allocation) *rpc.HostSettings {
	if !isStrict(al) || a.opt.Config.TCPEarlyDemux != config.DemuxAutomatic {
		return nil
	}
	return &rpc.HostSettings{TcpEarlyDemux: proto.Bool(false)}
}

// hostAfter is what the executable is to set now that the pod is gone: early demux comes back with the end of the last
// strict pod, where no other is expected.
func (a *Agent) hostAfter(ctx context.Context, al store.Allocation) *rpc.HostSettings {
	if al.Branch == nil || a.opt.Config.TCPEarlyDemux != config.DemuxAutomatic {
		return nil
	}
	strict, err := a.strictPods(ctx)
	if err != nil {
		a.opt.Log.Warn("whether strict branch pods are left is not known: TCP early demux stays off", "error", err)
	}
	if strict {
		return nil
	}
	return &rpc.HostSettings{TcpEarlyDemux: proto.Bool(true)}
}
