package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/introspection"
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

type dialer struct{ socket string }

func (d *dialer) dial(ctx context.Context, _, _ string) (net.Conn, error) {
	return (&net.Dialer{}).DialContext(ctx, "unix", d.socket)
}

// call makes a connection to the agent's socket.
func (w *world) call(t *testing.T) *grpc.ClientConn {
	t.Helper()
	cc, err := grpc.NewClient("unix://"+filepath.Join(w.dir, "s"), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return cc
}

func (w *world) view(t *testing.T, name string) []byte {
	t.Helper()
	r, err := introspection.NewIntrospectionClient(w.call(t)).View(t.Context(), &introspection.ViewRequest{Name: name})
	if err != nil {
		t.Fatal(err)
	}
	return r.GetJson()
}

// TestHealthMeansThatTheAgentCanServe: what is wired can't be expected to work while the host's routing fails. A full pool is
// no such thing.
func TestHealthMeansThatTheAgentCanServe(t *testing.T) {
	w := newWorld(t, pod("a", "ua"))
	s, _ := w.start()
	eventually(t, "the agent is ready", s.a.ready.Load)
	health := func() healthpb.HealthCheckResponse_ServingStatus {
		r, err := healthpb.NewHealthClient(w.call(t)).Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return r.Status
	}
	eventually(t, "serving", func() bool { return health() == healthpb.HealthCheckResponse_SERVING })
	w.routing.set(errors.New("the kernel refuses"))
	w.routing.meddle(func(*hostnet.Actual) {})
	eventually(t, "the routing failed", func() bool { _, err := s.a.routingBroken(); return err != nil })
	if health() != healthpb.HealthCheckResponse_SERVING {
		t.Error("not serving at once")
	}
	w.pass(brokenAfter)
	s.a.health.Fire()
	eventually(t, "not serving", func() bool { return health() == healthpb.HealthCheckResponse_NOT_SERVING })
	w.routing.set(nil)
	w.routing.meddle(func(*hostnet.Actual) {})
	eventually(t, "serving again", func() bool { return health() == healthpb.HealthCheckResponse_SERVING })

	_, err := introspection.NewIntrospectionClient(w.call(t)).View(t.Context(), &introspection.ViewRequest{Name: "none"})
	wantCode(t, err, codes.NotFound, "enis")
	r, err := introspection.NewIntrospectionClient(w.call(t)).View(t.Context(), &introspection.ViewRequest{})
	if err != nil || len(r.GetNames()) != 4 {
		t.Errorf("%v, %v", r, err)
	}
}
