package nodeagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/rpc"
)

type agent struct {
	UnimplementedNodeAgentServer
	seen Peer
}

func (a *agent) Add(ctx context.Context, _ *rpc.AddRequest) (*rpc.AddReply, error) {
	p, _ := peer.FromContext(ctx)
	a.seen, _ = p.AuthInfo.(Peer)
	return &rpc.AddReply{Version: rpc.Version}, nil
}

func serve(t *testing.T, path string, uid uint32) *agent {
	t.Helper()
	l, err := rpc.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	s, a := grpc.NewServer(grpc.Creds(peerCredentials{uid: uid})), &agent{}
	RegisterNodeAgentServer(s, a)
	go s.Serve(l)
	t.Cleanup(s.Stop)
	return a
}

func call(t *testing.T, path string, uid uint32, opts ...grpc.CallOption) error {
	t.Helper()
	c, err := dial(path, uid)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, err = c.Add(ctx, &rpc.AddRequest{}, opts...)
	return err
}

func TestBothEndsSeeEachOther(t *testing.T) {
	me := uint32(os.Getuid())
	path := filepath.Join(t.TempDir(), "run", "a.sock")
	a := serve(t, path, me)
	if err := call(t, path, me); err != nil {
		t.Fatal(err)
	}
	if a.seen.UID != me || int(a.seen.PID) != os.Getpid() {
		t.Errorf("the server saw %+v", a.seen)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket: %v, %v", info.Mode(), err)
	}
	if info, _ := os.Stat(filepath.Dir(path)); info.Mode().Perm() != 0o755 {
		t.Errorf("directory: %v", info.Mode())
	}
}

func TestAStrangerIsRefusedAtOnceByEitherEnd(t *testing.T) {
	me := uint32(os.Getuid())
	path := filepath.Join(t.TempDir(), "a.sock")
	serve(t, path, me)
	began := time.Now()
	if err := call(t, path, me+1, grpc.WaitForReady(true)); !errors.Is(err, rpc.ErrPeerRefused) {
		t.Errorf("client: %v", err)
	}
	if time.Since(began) > 5*time.Second {
		t.Error("the client waited for the deadline")
	}
	other := filepath.Join(t.TempDir(), "b.sock")
	serve(t, other, me+1)
	if err := call(t, other, me); status.Code(err) != codes.Unavailable {
		t.Errorf("server: %v", err)
	}
}

func TestACallWaitsForTheAgentOnlyWhenToldTo(t *testing.T) {
	me := uint32(os.Getuid())
	path := filepath.Join(t.TempDir(), "a.sock")
	if err := call(t, path, me); status.Code(err) != codes.Unavailable {
		t.Errorf("nobody listens: %v", err)
	}
	done := make(chan error, 1)
	go func() { done <- call(t, path, me, grpc.WaitForReady(true)) }()
	serve(t, path, me)
	if err := <-done; err != nil {
		t.Errorf("the agent came: %v", err)
	}
}
