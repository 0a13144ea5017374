// Package backend is the services of policyagent.proto over the gRPC library: the node agent serves one, tests the other.
// The CNI executable calls the latter by policyagent.Dial.
package backend
