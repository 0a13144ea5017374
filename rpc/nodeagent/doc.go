// Package nodeagent is the service of ipamd.proto over the gRPC library: for the node agent, which serves it, and for
// whoever asks it from a process that lives longer than milliseconds (the agent's own probes, tests, measurements).
//
// It is not for the CNI executable, which has rpc.Dial: linking the gRPC library would cost it more than all its work in
// the kernel.
package nodeagent
