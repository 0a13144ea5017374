//go:build kernel

package eni

import (
	"context"
	"path/filepath"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// fakeAgent is a small node agent with state: which pod gets what, and who holds it.
type fakeAgent struct {
	nodeagent.UnimplementedNodeAgentServer
	socket string

	mu      sync.Mutex
	pods    map[string]*rpc.AddReply // by namespace/name
	refusal map[string]error
	held    map[string]string // container id/interface -> pod
	dels    []*rpc.DelRequest
	after   *rpc.HostSettings // what Del answers with
	status  *rpc.StatusReply  // what Status answers with
	gcs     []*rpc.GcRequest
	hang    chan struct{} // while set, Add is told of on it and then waits for its caller's end
	server  *grpc.Server
}

func newFakeAgent(t testing.TB) *fakeAgent {
	a := &fakeAgent{
		socket: filepath.Join(t.TempDir(), "ipamd.sock"),
		pods:   map[string]*rpc.AddReply{}, refusal: map[string]error{}, held: map[string]string{},
	}
	t.Cleanup(a.stop)
	return a
}

func (a *fakeAgent) start(t testing.TB) {
	t.Helper()
	if err := a.serve(); err != nil {
		t.Fatal(err)
	}
}

func (a *fakeAgent) serve() error {
	l, err := rpc.Listen(a.socket)
	if err != nil {
		return err
	}
	server := grpc.NewServer(grpc.Creds(nodeagent.NewServerCredentials()))
	nodeagent.RegisterNodeAgentServer(server, a)
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go server.Serve(l)
	return nil
}

func (a *fakeAgent) stop() {
	a.mu.Lock()
	s := a.server
	a.server = nil
	a.mu.Unlock()
	if s != nil {
		s.Stop()
	}
}

func (a *fakeAgent) Add(ctx context.Context, r *rpc.AddRequest) (*rpc.AddReply, error) {
	a.mu.Lock()
	hang := a.hang
	a.mu.Unlock()
	if hang != nil {
		hang <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	key := r.GetPod().GetNamespace() + "/" + r.GetPod().GetName()
	if err := a.refusal[key]; err != nil {
		return nil, err
	}
	reply, ok := a.pods[key]
	if !ok {
		return nil, status.Errorf(codes.NotFound, "pod %s is not known to the API server", key)
	}
	a.held[r.GetAttachment().GetContainerId()+"/"+r.GetAttachment().GetIfName()] = key
	return reply, nil
}

func (a *fakeAgent) Del(_ context.Context, r *rpc.DelRequest) (*rpc.DelReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dels = append(a.dels, r)
	key := r.GetAttachment().GetContainerId() + "/" + r.GetAttachment().GetIfName()
	_, found := a.held[key]
	delete(a.held, key)
	return &rpc.DelReply{Version: rpc.Version, Found: found, Host: a.after}, nil
}

func (a *fakeAgent) Check(_ context.Context, r *rpc.CheckRequest) (*rpc.AddReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	pod, ok := a.held[r.GetAttachment().GetContainerId()+"/"+r.GetAttachment().GetIfName()]
	if !ok {
		return nil, status.Error(codes.NotFound, "the node agent holds nothing for this sandbox")
	}
	return a.pods[pod], nil
}

func (a *fakeAgent) Status(context.Context, *rpc.StatusRequest) (*rpc.StatusReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status, nil
}

func (a *fakeAgent) Gc(_ context.Context, r *rpc.GcRequest) (*rpc.GcReply, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.gcs = append(a.gcs, r)
	return &rpc.GcReply{Version: rpc.Version}, nil
}

func (a *fakeAgent) says(r *rpc.StatusReply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = r
}

func (a *fakeAgent) set(pod string, reply *rpc.AddReply) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.pods[pod] = reply
}

func (a *fakeAgent) refuse(pod string, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refusal[pod] = err
}

func (a *fakeAgent) holds() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.held)
}

func (a *fakeAgent) lastDel() *rpc.DelRequest {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.dels) == 0 {
		return nil
	}
	return a.dels[len(a.dels)-1]
}
