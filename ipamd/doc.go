// Package ipamd is the node agent: it wires the rooms below it (enis, pool, store, podeni, hostnet, install, kube) into
// one process, and serves the CNI executable over a unix socket.
//
// An Agent runs a few loops, each of which looks at the state as it is, does what is missing, and sleeps until something
// changed: the inventory of ENIs with the host's routing, the pool, the trunk, the ledger's releases, readiness. Requests
// of the executable are answered by Add and Del, from memory where they can be.
package ipamd
