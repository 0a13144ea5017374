package ipamd

import (
	"context"
	"fmt"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

func TestP17HealthServesOnlyOnceAPodCanBeWired(t *testing.T) {
	w := newWorld(t)
	w.cloud.failed = fmt.Errorf("EC2 is away")
	w.start()
	cc, err := grpc.NewClient("unix://"+filepath.Join(w.dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer cc.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	status := func(service string) healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	if status("") != healthpb.HealthCheckResponse_NOT_SERVING || status(Live) != healthpb.HealthCheckResponse_SERVING {
		t.Error("before the first address: want not serving, but live")
	}
	w.cloud.mu.Lock()
	w.cloud.failed = nil
	w.cloud.mu.Unlock()
	eventually(t, "serving", func() bool { return status("") == healthpb.HealthCheckResponse_SERVING })
	_, err = nodeagent.NewNodeAgentClient(cc).Add(ctx, &rpc.AddRequest{})
	wantCode(t, err, codes.InvalidArgument, "container_id")
}
