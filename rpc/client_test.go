package rpc_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// agent says which call it got, in the field that each reply has.
type agent struct {
	nodeagent.UnimplementedNodeAgentServer
	valid []*rpc.Attachment
}

func (*agent) Add(_ context.Context, r *rpc.AddRequest) (*rpc.AddReply, error) {
	return &rpc.AddReply{Version: "Add " + r.GetPod().GetName()}, nil
}
func (*agent) Del(_ context.Context, r *rpc.DelRequest) (*rpc.DelReply, error) {
	return &rpc.DelReply{Version: "Del " + r.GetReason()}, nil
}
func (*agent) Check(_ context.Context, r *rpc.CheckRequest) (*rpc.AddReply, error) {
	return nil, status.Errorf(codes.NotFound, "Check %s", r.GetPod().GetName())
}
func (*agent) Status(_ context.Context, r *rpc.StatusRequest) (*rpc.StatusReply, error) {
	return &rpc.StatusReply{Version: "Status " + r.GetVersion()}, nil
}
func (a *agent) Gc(_ context.Context, r *rpc.GcRequest) (*rpc.GcReply, error) {
	a.valid = r.GetValid()
	return &rpc.GcReply{Freed: uint32(len(a.valid))}, nil
}

func TestTheExecutablesClientCallsEachMethodOfTheAgent(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "ipamd.sock")
	l, err := rpc.Listen(socket)
	if err != nil {
		t.Fatal(err)
	}
	a := new(agent)
	s := grpc.NewServer(grpc.MaxRecvMsgSize(1 << 20)) // as ipamd
	nodeagent.RegisterNodeAgentServer(s, a)
	go s.Serve(l)
	defer s.Stop()
	conn, err := unary.New(socket, uint32(os.Getuid()))
	if err != nil {
		t.Fatal(err)
	}
	c, ctx := rpc.NewClient(conn), t.Context()
	defer c.Close()
	if err := c.Connect(); err != nil {
		t.Error(err)
	}
	if r, err := c.Add(ctx, &rpc.AddRequest{Pod: &rpc.Pod{Name: "web"}}); err != nil || r.GetVersion() != "Add web" {
		t.Errorf("Add: %v, %v", r, err)
	}
	if r, err := c.Del(ctx, &rpc.DelRequest{Reason: "why"}); err != nil || r.GetVersion() != "Del why" {
		t.Errorf("Del: %v, %v", r, err)
	}
	if r, err := c.Check(ctx, &rpc.CheckRequest{Pod: &rpc.Pod{Name: "web"}}); r != nil || unary.CodeOf(err) != unary.NotFound || !strings.Contains(err.Error(), "Check web") {
		t.Errorf("Check: %v, %v", r, err)
	}
	if r, err := c.Status(ctx, &rpc.StatusRequest{Version: "1"}); err != nil || r.GetVersion() != "Status 1" {
		t.Errorf("Status: %v, %v", r, err)
	}
	// More than the windows, of the sandboxes of a crowded node several times over.
	in := &rpc.GcRequest{}
	for n := range 5000 {
		in.Valid = append(in.Valid, &rpc.Attachment{ContainerId: fmt.Sprintf("%064x", n), IfName: "eth0", NetworkName: "aws-cni"})
	}
	if r, err := c.Gc(ctx, in); err != nil || r.GetFreed() != 5000 || a.valid[4999].GetContainerId() != in.Valid[4999].GetContainerId() {
		t.Errorf("Gc: %v, %v", r, err)
	}
}

func TestDialWantsAnAbsolutePath(t *testing.T) {
	if _, err := rpc.Dial("ipamd.sock"); err == nil || !strings.Contains(err.Error(), "ipamd.sock") {
		t.Error(err)
	}
}
