package ipamd

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/branchline-cni/branchline/rpc/policyagent"
	"github.com/branchline-cni/branchline/rpc/policyagent/backend"
)

// policyAgentPatience is how long the network policy agent waits for its answer before it ends.
const policyAgentPatience = 30 * time.Second

// policyBackend answers the AWS network policy agent, which asks once, when it starts.
type policyBackend struct {
	backend.UnimplementedConfigServerBackendServer
	a *Agent
}

// GetNetworkPolicyConfigs says how policies are enforced and whose node this is. The agent that asks keeps the answer
// for as long as it runs, so it isn't given with an address missing: the inventory is waited for.
func (s policyBackend) GetNetworkPolicyConfigs(ctx context.Context, _ *emptypb.Empty) (*policyagent.NetworkPolicyAgentConfigReply, error) {
	ctx, cancel := context.WithTimeout(ctx, policyAgentPatience)
	defer cancel()
	reply := &policyagent.NetworkPolicyAgentConfigReply{
		MultiNICEnabled:   s.a.opt.Config.MultiNIC,
		NetworkPolicyMode: s.a.opt.Config.NetworkPolicyMode,
		InstanceID:        s.a.opt.Identity.InstanceID,
		Region:            s.a.opt.Identity.Region,
	}
	for {
		changed := s.a.inventory.Changed.C()
		for _, e := range s.a.inventory.ENIs() {
			if !e.Primary() || len(e.Addresses) == 0 {
				continue
			}
			if first := e.Addresses[0]; first.Is4() {
				reply.NodeIPv4 = first.String()
			} else {
				reply.NodeIPv6 = first.String()
			}
			return reply, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, status.Error(codes.Unavailable, "the node agent has not yet read the node's addresses from IMDS")
		}
	}
}
