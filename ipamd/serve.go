package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/introspection"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
	"github.com/branchline-cni/branchline/rpc/policyagent/backend"
)

// Live is the health service that only says that the agent runs. The empty name says that it can serve: pods can be wired, and
// the routing of those that run is in place.
const Live = "live"

// maxStreams bounds the requests of one connection that are under way at once: many may wait for an annotation.
const maxStreams = 1024

// serve answers on the socket until ctx ends.
func (a *Agent) serve(ctx context.Context) error {
	s := grpc.NewServer(grpc.Creds(a.opt.Credentials), grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(1<<20))
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus(nodeagent.NodeAgent_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus(Live, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s, h)
	nodeagent.RegisterNodeAgentServer(s, service{a: a})
	backend.RegisterConfigServerBackendServer(s, policyBackend{a: a})
	introspection.RegisterIntrospectionServer(s, introspectionService{views: a.views()})
	failed := make(chan error, 1)
	go func() { failed <- s.Serve(a.opt.Listener) }()
	for announced := false; ; {
		changed, health := a.changed.C(), a.health.C()
		if now := a.serving(); now != announced {
			status := healthpb.HealthCheckResponse_NOT_SERVING
			if announced = now; now {
				status = healthpb.HealthCheckResponse_SERVING
			} else {
				a.opt.Log.Error("the node agent's health is not serving: the host's routing has failed for too long", "since", brokenAfter.String())
			}
			h.SetServingStatus("", status)
			h.SetServingStatus(nodeagent.NodeAgent_ServiceDesc.ServiceName, status)
		}
		var broken <-chan time.Time
		if d := a.untilBroken(); d > 0 {
			broken = time.After(d)
		}
		select {
		case err := <-failed:
			return fmt.Errorf("serve on %s: %w", a.opt.Listener.Addr(), err)
		case <-changed:
		case <-health:
		case <-broken:
		case <-ctx.Done():
			h.Shutdown()
			s.Stop() // requests are idempotent: the executable asks the next agent
			<-failed
			return ctx.Err()
		}
	}
}

// serveMetrics serves /metrics until ctx ends.
func (a *Agent) serveMetrics(ctx context.Context) error {
	if a.opt.MetricsAddr == "" || a.opt.Config.NoMetrics {
		return nil
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.opt.Metrics, promhttp.HandlerOpts{}))
	return a.serveHTTP(ctx, "metrics", a.opt.MetricsAddr, mux)
}

// serveIntrospection serves what the node's monitoring reads until ctx ends.
func (a *Agent) serveIntrospection(ctx context.Context) error {
	if a.opt.Config.Introspection == "" || a.opt.Config.NoIntrospect {
		return nil
	}
	return a.serveHTTP(ctx, "introspection", a.opt.Config.Introspection, a.views().Handler())
}

// serveHTTP serves until ctx ends. An address that can't be had costs the endpoint, not the agent: pods come first.
func (a *Agent) serveHTTP(ctx context.Context, what, addr string, h http.Handler) error {
	l, err := listen(ctx, addr)
	if err != nil {
		a.opt.Log.Error("this endpoint is not served: free the address and restart", "endpoint", what, "address", addr, "error", err)
		return nil
	}
	a.opt.Log.Info("endpoint served", "endpoint", what, "address", l.Addr().String())
	s := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second, WriteTimeout: 30 * time.Second, MaxHeaderBytes: 1 << 14}
	stop := context.AfterFunc(ctx, func() { s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve %s on %s: %w", what, addr, err)
	}
	return nil
}

// listen takes the address of a TCP port, or unix: and the path of a socket, which root alone can use then.
func listen(ctx context.Context, addr string) (net.Listener, error) {
	if path, ok := strings.CutPrefix(addr, config.UnixPrefix); ok {
		return rpc.Listen(path)
	}
	return (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
}
