package main

import (
	"context"
	"flag"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/branchline-cni/branchline/ipamd"
)

func probe(t *testing.T, args ...string) error {
	t.Helper()
	return healthCommand(t.Context(), flag.NewFlagSet("health", flag.ContinueOnError), args)
}

// agent answers for the agent on a socket until the test's end or stop.
func agent(t *testing.T, socket string) (h *health.Server, stop func()) {
	t.Helper()
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	h, s := health.NewServer(), grpc.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	h.SetServingStatus(ipamd.Live, healthpb.HealthCheckResponse_SERVING)
	healthpb.RegisterHealthServer(s, h)
	go func() { _ = s.Serve(l) }()
	stop = func() {
		s.Stop()
		_ = l.Close() // which Stop does if Serve has begun
	}
	t.Cleanup(stop)
	return h, stop
}

func TestAProbeTakesTheFirstAnswerUnlessItWaits(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	if err := probe(t, "-socket", socket); err == nil {
		t.Error("an agent that is not there is healthy")
	}
	h, _ := agent(t, socket)
	if err := probe(t, "-socket", socket); err == nil || !strings.Contains(err.Error(), "NOT_SERVING") {
		t.Errorf("ready: %v", err)
	}
	if err := probe(t, "-socket", socket, "-live"); err != nil {
		t.Errorf("live: %v", err)
	}
	if err := probe(t, "-socket", socket, "-wait", "1s"); err == nil || !strings.Contains(err.Error(), "NOT_SERVING") || !strings.Contains(err.Error(), "after 1s") {
		t.Errorf("waited in vain: %v", err)
	}
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	if err := probe(t, "-socket", socket); err != nil {
		t.Error(err)
	}
}

func TestAProbeWaitsForAnAgentThatStartsAndBecomesReady(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() {
		ended <- healthCommand(ctx, flag.NewFlagSet("health", flag.ContinueOnError), []string{"-socket", socket, "-wait", "30s"})
	}()
	_, stop := agent(t, socket)
	stop() // and is killed
	h, _ := agent(t, socket)
	select {
	case err := <-ended:
		t.Fatalf("ended before the agent serves: %v", err)
	case <-time.After(50 * time.Millisecond): // it waits; too short a look can only miss a fault
	}
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
