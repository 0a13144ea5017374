package policyagent_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"

	"google.golang.org/grpc"

	"github.com/branchline-cni/branchline/rpc/policyagent"
	"github.com/branchline-cni/branchline/rpc/policyagent/backend"
	"github.com/branchline-cni/branchline/rpc/unary"
)

type agent struct {
	backend.UnimplementedNPBackendServer
}

func (agent) EnforceNpToPod(_ context.Context, r *policyagent.EnforceNpRequest) (*policyagent.EnforceNpReply, error) {
	return &policyagent.EnforceNpReply{Success: r.GetK8S_POD_NAME() == "web"}, nil
}
func (agent) DeletePodNp(_ context.Context, r *policyagent.DeleteNpRequest) (*policyagent.DeleteNpReply, error) {
	return &policyagent.DeleteNpReply{Success: r.GetK8S_POD_NAME() == "gone"}, nil
}

func TestTheExecutablesClientCallsEachMethodOfThePolicyAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "npa.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	backend.RegisterNPBackendServer(s, agent{})
	go s.Serve(l)
	defer s.Stop()
	conn, err := unary.New(socket, uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	c := policyagent.NewClient(conn)
	defer c.Close()
	if r, err := c.EnforceNpToPod(t.Context(), &policyagent.EnforceNpRequest{K8S_POD_NAME: "web"}); err != nil || !r.GetSuccess() {
		t.Errorf("EnforceNpToPod: %v, %v", r, err)
	}
	if r, err := c.DeletePodNp(t.Context(), &policyagent.DeleteNpRequest{K8S_POD_NAME: "gone"}); err != nil || !r.GetSuccess() {
		t.Errorf("DeletePodNp: %v, %v", r, err)
	}
}
