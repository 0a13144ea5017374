package rpc

import (
	"context"
	"fmt"

	"github.com/branchline-cni/branchline/rpc/peercred"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// ErrPeerRefused is wrapped by the error of a call whose server is not root's.
var ErrPeerRefused = peercred.ErrRefused

// Client is the CNI executable's way to the node agent: see unary.Conn, which it is for one goroutine like. The errors of
// its calls are *unary.Error; codes are said in nodeagent/nodeagent.proto.
type Client struct{ conn *unary.Conn }

// Dial prepares calls to the agent's socket. Nothing is connected before Connect or the first call. An agent that is not
// root fails every call at once with ErrPeerRefused.
func Dial(socket string) (*Client, error) {
	conn, err := unary.New(socket, 0)
	if err != nil {
		return nil, fmt.Errorf("prepare calls to the node agent: %w", err)
	}
	return &Client{conn}, nil
}

// Connect makes the connection ahead of the call: see unary.Conn.
func (c *Client) Connect() error { return c.conn.Connect() }

// Close closes the connection.
func (c *Client) Close() { c.conn.Close() }

const service = "/branchline.rpc.v1.NodeAgent/"

// Add waits, within its deadline, for an agent that is restarting.
func (c *Client) Add(ctx context.Context, in *AddRequest) (*AddReply, error) {
	return unary.Invoke[AddReply](ctx, c.conn, service+"Add", in, unary.WaitForReady)
}

// Del fails at once when no agent listens, as do the calls below.
func (c *Client) Del(ctx context.Context, in *DelRequest) (*DelReply, error) {
	return unary.Invoke[DelReply](ctx, c.conn, service+"Del", in, unary.FailFast)
}

// Check asks what Add has answered.
func (c *Client) Check(ctx context.Context, in *CheckRequest) (*AddReply, error) {
	return unary.Invoke[AddReply](ctx, c.conn, service+"Check", in, unary.FailFast)
}

// Status asks whether Add can succeed.
func (c *Client) Status(ctx context.Context, in *StatusRequest) (*StatusReply, error) {
	return unary.Invoke[StatusReply](ctx, c.conn, service+"Status", in, unary.FailFast)
}

// Gc says which sandboxes are valid.
func (c *Client) Gc(ctx context.Context, in *GcRequest) (*GcReply, error) {
	return unary.Invoke[GcReply](ctx, c.conn, service+"Gc", in, unary.FailFast)
}
