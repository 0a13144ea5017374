package agent

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/rpc"
)

func request(container, pod string) *rpc.AddRequest {
	return &rpc.AddRequest{Pod: &rpc.Pod{Namespace: PodNamespace, Name: pod}, Attachment: &rpc.Attachment{ContainerId: container, IfName: "eth0"}}
}

func TestEveryPodHasAnAddressOfItsOwn(t *testing.T) {
	a := &Agent{held: map[string]string{}, trunk: 7}
	addresses, macs := map[string]string{}, map[string]string{}
	for n := range 1000 {
		name := PodName(Regular, n)
		r, err := a.Add(context.Background(), request(name, name))
		if err != nil {
			t.Fatal(err)
		}
		address := r.GetRegular().GetAddress()
		if other := addresses[address]; other != "" {
			t.Fatalf("%s for %s and %s", address, other, name)
		}
		addresses[address] = name
	}
	for n := range MaxBranch {
		name := PodName(Branch, n)
		r, err := a.Add(context.Background(), request(name, name))
		if err != nil {
			t.Fatal(err)
		}
		b := r.GetBranch()
		if other := macs[b.GetMac()]; other != "" || b.GetVlanId() != uint32(n+1) || b.GetTrunkIfindex() != 7 {
			t.Fatalf("%s has what %q has: %v", name, other, b)
		}
		macs[b.GetMac()] = name
	}
	if a.Held() != 1000+MaxBranch {
		t.Errorf("%d sandboxes", a.Held())
	}
	if r, err := a.Del(context.Background(), &rpc.DelRequest{Attachment: &rpc.Attachment{ContainerId: PodName(Regular, 0)}}); err != nil || !r.GetFound() {
		t.Errorf("%v, %v", r, err)
	}
	if r, err := a.Del(context.Background(), &rpc.DelRequest{Attachment: &rpc.Attachment{ContainerId: PodName(Regular, 0)}}); err != nil || r.GetFound() {
		t.Errorf("the second time: %v, %v", r, err)
	}
}

func TestOtherPodsAreRefused(t *testing.T) {
	a := &Agent{held: map[string]string{}}
	for pod, want := range map[string]codes.Code{
		"regular-x": codes.NotFound, "regular--1": codes.NotFound, "web": codes.NotFound,
		"branch-0": codes.FailedPrecondition, "other-1": codes.FailedPrecondition, fmt.Sprintf("branch-%d", MaxBranch): codes.FailedPrecondition,
	} {
		if _, err := a.Add(context.Background(), request("c", pod)); status.Code(err) != want {
			t.Errorf("%s: %v, want %v", pod, err, want)
		}
	}
}

func TestItServesTheRealClient(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "ipamd.sock")
	a, err := Start(socket, 0)
	if err != nil {
		t.Fatal(err)
	}
	client, err := rpc.Dial(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if _, err := client.Add(t.Context(), request("c", "regular-0")); err != nil {
		t.Error(err)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
}
