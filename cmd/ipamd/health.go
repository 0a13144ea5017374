package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/ipamd"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// healthCommand is for exec probes. Liveness must only ask whether the agent runs: one that waits for its first address
// is not helped by a restart. Readiness waits for the answer that it wants: a probe costs the node more than all that the
// agent does between two of them, so there should be few, and a rollout waits for the next one.
func healthCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	socket := flags.String("socket", rpc.SocketPath, "unix socket `path` of the agent")
	live := flags.Bool("live", false, "ask only whether the agent runs, for liveness probes")
	timeout := flags.Duration("timeout", 3*time.Second, "how long to wait for the answer")
	wait := flags.Duration("wait", 0, "how long to wait until the answer is yes; 0: the first answer counts")
	if err := parse(flags, args); err != nil {
		return err
	}
	service := ""
	if *live {
		service = ipamd.Live
	}
	conn, err := nodeagent.Dial(*socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client, request := healthpb.NewHealthClient(conn), &healthpb.HealthCheckRequest{Service: service}
	if *wait > 0 {
		err := serving(ctx, client, request, *wait)
		if err != nil {
			err = fmt.Errorf("wait for the node agent on %s: %w", *socket, err)
		}
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, *timeout)
	defer cancel()
	reply, err := client.Check(ctx, request)
	if err != nil {
		return fmt.Errorf("ask the node agent on %s: %w", *socket, err)
	}
	if reply.Status != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("the node agent on %s says %s", *socket, reply.Status)
	}
	return nil
}

// serving waits until the agent says that it serves, also where it doesn't run yet.
func serving(ctx context.Context, client healthpb.HealthClient, request *healthpb.HealthCheckRequest, limit time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("it does not serve after %s", limit))
	defer cancel()
	last := errors.New("it has not answered")
	for {
		stream, err := client.Watch(ctx, request, grpc.WaitForReady(true))
		for err == nil {
			var reply *healthpb.HealthCheckResponse
			if reply, err = stream.Recv(); err != nil {
				break
			}
			if reply.Status == healthpb.HealthCheckResponse_SERVING {
				return nil
			}
			last = fmt.Errorf("it says %s", reply.Status)
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w: %w", context.Cause(ctx), last)
		}
		// The server knows of the time limit, too, and may have ended the stream a moment before it is over here.
		if c := status.Code(err); c != codes.Canceled && c != codes.DeadlineExceeded {
			last = err
		}
		select { // it ended, and may begin again
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
}
