// Package agent answers the CNI executable as the node agent does, over the server side of the real rpc room, from
// memory: what the node agent itself takes (its store, its watch) is not a part of this benchmark.
package agent

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// PodNamespace is the Kubernetes namespace that the benchmark's pods say they are in.
const PodNamespace = "bench"

// Kinds of pods: the first part of a pod's name, before the dash and its number.
const (
	Regular = "regular"
	Branch  = "branch"
)

// PodName is the name of the n-th pod of a kind, from 0.
func PodName(kind string, n int) string { return kind + "-" + strconv.Itoa(n) }

// MaxBranch is how many branch pods a node can have.
const MaxBranch = 120

// RouteTable is what the node agent answers where its own rules, one for each ENI, send pods' packets the right way: no
// rule of the pod's own is needed. device is the ENI's: most pods of a node are on a secondary ENI.
const (
	RouteTable = 0
	device     = 1
)

// Address is the n-th pod's: the n-th of 10.16.0.0/16, network and first host left out.
func Address(n int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 16, byte((n + 16) >> 8), byte(n + 16)})
}

// Agent serves one host namespace's executables.
type Agent struct {
	nodeagent.UnimplementedNodeAgentServer
	server *grpc.Server
	done   chan error
	trunk  uint32

	mu   sync.Mutex
	held map[string]string // container id -> pod
}

// Start listens on socket. trunkIfindex is that of the host's trunk, 0 where there is none.
func Start(socket string, trunkIfindex int) (*Agent, error) {
	l, err := rpc.Listen(socket)
	if err != nil {
		return nil, err
	}
	a := &Agent{
		server: grpc.NewServer(grpc.Creds(nodeagent.NewServerCredentials())), done: make(chan error, 1), trunk: uint32(trunkIfindex),
		held: map[string]string{},
	}
	nodeagent.RegisterNodeAgentServer(a.server, a)
	go func() { a.done <- a.server.Serve(l) }()
	return a, nil
}

// Close ends the agent.
func (a *Agent) Close() error {
	a.server.Stop()
	if err := <-a.done; err != nil && !errors.Is(err, grpc.ErrServerStopped) {
		return fmt.Errorf("the benchmark's agent: %w", err)
	}
	return nil
}

// Held is how many sandboxes have an address.
func (a *Agent) Held() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.held)
}

// Add implements nodeagent.NodeAgentServer.
func (a *Agent) Add(_ context.Context, r *rpc.AddRequest) (*rpc.AddReply, error) {
	name := r.GetPod().GetName()
	kind, number, _ := strings.Cut(name, "-")
	n, err := strconv.Atoi(number)
	if err != nil || n < 0 || r.GetPod().GetNamespace() != PodNamespace {
		return nil, status.Errorf(codes.NotFound, "pod %s/%s is none of the benchmark's", r.GetPod().GetNamespace(), name)
	}
	reply := &rpc.AddReply{Version: rpc.Version}
	switch {
	case kind == Regular:
		reply.Interface = &rpc.AddReply_Regular{Regular: &rpc.RegularInterface{
			Address: Address(n).String(), EniId: "eni-0123456789abcdef0", DeviceNumber: device, RouteTable: RouteTable,
		}}
	case kind == Branch && n < MaxBranch && a.trunk != 0:
		reply.Interface = &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
			EniId: fmt.Sprintf("eni-%017x", n+1), Mac: fmt.Sprintf("06:20:0d:3c:5f:%02x", n+1), VlanId: uint32(n + 1),
			Address: Address(n).String(), SubnetCidr: "10.16.0.0/16", Gateway: "10.16.0.1", TrunkIfindex: a.trunk,
		}}
	default:
		return nil, status.Errorf(codes.FailedPrecondition, "pod %s: no such kind here, or no trunk", name)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held[r.GetAttachment().GetContainerId()] = name
	return reply, nil
}

// Del implements nodeagent.NodeAgentServer.
func (a *Agent) Del(_ context.Context, r *rpc.DelRequest) (*rpc.DelReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, found := a.held[r.GetAttachment().GetContainerId()]
	delete(a.held, r.GetAttachment().GetContainerId())
	return &rpc.DelReply{Version: rpc.Version, Found: found}, nil
}
