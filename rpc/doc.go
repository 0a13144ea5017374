// Package rpc is the contract between the CNI executable and the node agent: the generated messages of ipamd.proto,
// and the one way in which either side opens the unix socket, so that both check who is at its other end.
//
// It is not the place for what the messages mean to the kernel (plugins/datapath) or to the pool (ipamd), and it
// imports nothing that costs time at start: the executable runs once per sandbox.
package rpc

// SocketPath is where the node agent listens. The AWS network policy agent dials the same path.
const SocketPath = "/var/run/aws-node/ipamd.sock"

// Version is what this build calls itself in each request and reply. The build sets it by
// -ldflags "-X github.com/branchline-cni/branchline/rpc.Version=…".
var Version = "devel"
