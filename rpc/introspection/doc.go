// Package introspection is the service over the agent's socket by which it shows its views. The CNI executable has no use for
// it: it links the gRPC library.
package introspection
