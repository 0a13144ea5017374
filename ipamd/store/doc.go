// Package store is the node's memory of who holds which address. Each change is on disk before it is answered, so that
// the agent may be killed at any instruction: after a restart it gives the same answers and no address twice.
//
// It is the only owner of that state: whoever wants an address asks here, with the candidates that are usable now, and
// whoever wants to take an ENI away asks here first. It knows nothing of EC2, the kernel or Kubernetes.
//
// The state is one JSON file with a checksum, written to a temporary file, synced, renamed, the directory synced. A file
// that can't be read is kept aside, and said.
package store
