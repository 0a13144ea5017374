package rpc

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
)

type agent struct {
	UnimplementedNodeAgentServer
	seen Peer
}

func (a *agent) Add(ctx context.Context, _ *AddRequest) (*AddReply, error) {
	p, _ := peer.FromContext(ctx)
	a.seen, _ = p.AuthInfo.(Peer)
	return &AddReply{Version: Version}, nil
}

func serve(t *testing.T, path string, uid uint32) *agent {
	t.Helper()
	l, err := Listen(path)
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
	_, err = c.Add(ctx, &AddRequest{}, opts...)
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
	if err := call(t, path, me+1, grpc.WaitForReady(true)); !errors.Is(err, ErrPeerRefused) {
		t.Errorf("client: %v", err)
	}
	if time.Since(began) > 5*time.Second {
		t.Error("the client waited for the deadline")
	}
	cc, err := connect(path, me+1) // as the network policy agent is connected to
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	if _, err := NewNodeAgentClient(cc).Add(t.Context(), &AddRequest{}, grpc.WaitForReady(true)); !errors.Is(err, ErrPeerRefused) {
		t.Errorf("client of another agent: %v", err)
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

func TestListenTakesOverASocketAndLeavesASuccessorsAlone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "a.sock")
	first, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	second, err := Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	first.Close()
	c, err := net.Dial("unix", path)
	if err != nil {
		t.Fatalf("the successor's socket is gone: %v", err)
	}
	c.Close()
	second.Close()
	if entries, _ := os.ReadDir(filepath.Dir(path)); len(entries) != 0 {
		t.Errorf("left behind: %v", entries)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path); err == nil {
		t.Error("a file was replaced by a socket")
	}
}

func TestListenRefusesADirectoryThatOthersCanWriteTo(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(filepath.Join(dir, "a.sock")); err == nil {
		t.Error("accepted")
	}
}
