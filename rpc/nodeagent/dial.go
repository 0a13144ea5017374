package nodeagent

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"

	"github.com/branchline-cni/branchline/rpc/peercred"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// Conn is a connection to the node agent. Nothing is dialled before the first call.
type Conn struct {
	NodeAgentClient
	// ClientConn is for other services on the same socket, grpc.health.v1 for one.
	*grpc.ClientConn
}

// Dial prepares a connection to the agent's socket. A call with grpc.WaitForReady(true) waits, within its deadline,
// for an agent that is restarting; a call without it fails at once when nobody listens. An agent that is not root
// fails every call at once with rpc.ErrPeerRefused.
func Dial(socket string) (*Conn, error) { return dial(socket, 0) }

func dial(socket string, uid uint32) (*Conn, error) {
	if !filepath.IsAbs(socket) || len(socket) > unary.MaxSocketPath {
		return nil, fmt.Errorf("agent socket %q: want an absolute path of at most %d bytes", socket, unary.MaxSocketPath)
	}
	var refusal refusal
	cc, err := grpc.NewClient("passthrough:///"+socket,
		grpc.WithTransportCredentials(peerCredentials{uid: uid, refused: refusal.set}),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}),
		grpc.WithAuthority("localhost"), // as gRPC has it for unix sockets; the default here would be the path
		grpc.WithUnaryInterceptor(refusal.intercept),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		// A restarting agent is back within seconds; gRPC's own back-off would grow to minutes.
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second},
			MinConnectTimeout: 5 * time.Second,
		}),
	)
	if err != nil {
		return nil, fmt.Errorf("prepare a connection to the agent at %s: %w", socket, err)
	}
	return &Conn{NodeAgentClient: NewNodeAgentClient(cc), ClientConn: cc}, nil
}

// refusal ends the calls that wait for a connection once the peer is known to be the wrong one: gRPC itself would
// dial again until the deadline.
type refusal struct {
	mu      sync.Mutex
	err     error
	waiting map[*context.CancelCauseFunc]struct{}
}

func (r *refusal) set(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !errors.Is(err, peercred.ErrRefused) {
		return
	}
	r.err = err
	for cancel := range r.waiting {
		(*cancel)(err)
	}
}

func (r *refusal) intercept(ctx context.Context, method string, req, reply any, cc *grpc.ClientConn, invoke grpc.UnaryInvoker, opts ...grpc.CallOption) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	r.mu.Lock()
	if r.err != nil {
		r.mu.Unlock()
		return r.err
	}
	if r.waiting == nil {
		r.waiting = map[*context.CancelCauseFunc]struct{}{}
	}
	r.waiting[&cancel] = struct{}{}
	r.mu.Unlock()
	defer func() {
		r.mu.Lock()
		delete(r.waiting, &cancel)
		r.mu.Unlock()
	}()
	err := invoke(ctx, method, req, reply, cc, opts...)
	if cause := context.Cause(ctx); err != nil && errors.Is(cause, peercred.ErrRefused) {
		return cause
	}
	return err
}
