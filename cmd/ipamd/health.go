package main

import (
	"context"
	"flag"
	"fmt"
	"time"

	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/branchline-cni/branchline/ipamd"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// healthCommand is for exec probes. Liveness must only ask whether the agent runs: one that waits for its first address
// is not helped by a restart.
func healthCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	socket := flags.String("socket", rpc.SocketPath, "unix socket `path` of the agent")
	live := flags.Bool("live", false, "ask only whether the agent runs, for liveness probes")
	timeout := flags.Duration("timeout", 3*time.Second, "how long to wait for the answer")
	if err := parse(flags, args); err != nil {
		return err
	}
	service := ""
	if *live {
		service = ipamd.Live
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	conn, err := nodeagent.Dial(*socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	reply, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		return fmt.Errorf("ask the node agent on %s: %w", *socket, err)
	}
	if reply.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("the node agent on %s says %s", *socket, reply.Status)
	}
	return nil
}
