package rpc

import "github.com/branchline-cni/branchline/rpc/unary"

// NewClient is Dial for a server that is not root's: the tests' own.
func NewClient(c *unary.Conn) *Client { return &Client{c} }
