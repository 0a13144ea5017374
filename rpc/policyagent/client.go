package policyagent

import (
	"context"
	"fmt"

	"github.com/branchline-cni/branchline/rpc/unary"
)

// Client is the CNI executable's way to the network policy agent, which must be root's: see unary.Conn.
type Client struct{ conn *unary.Conn }

// Dial prepares calls to the policy agent's socket. Nothing is connected before the first call.
func Dial(socket string) (*Client, error) {
	conn, err := unary.New(socket, 0)
	if err != nil {
		return nil, fmt.Errorf("prepare calls to the network policy agent: %w", err)
	}
	return &Client{conn}, nil
}

// Close closes the connection.
func (c *Client) Close() { c.conn.Close() }

const service = "/rpc.NPBackend/"

// EnforceNpToPod waits, within its deadline, for a policy agent that is starting.
func (c *Client) EnforceNpToPod(ctx context.Context, in *EnforceNpRequest) (*EnforceNpReply, error) {
	return unary.Invoke[EnforceNpReply](ctx, c.conn, service+"EnforceNpToPod", in, unary.WaitForReady)
}

// DeletePodNp waits for nobody.
func (c *Client) DeletePodNp(ctx context.Context, in *DeleteNpRequest) (*DeleteNpReply, error) {
	return unary.Invoke[DeleteNpReply](ctx, c.conn, service+"DeletePodNp", in, unary.FailFast)
}
