// Package kube is everything that the node agent reads from and writes to the API server: the pods of its node, its
// CNINode, its branch ledger, one label of its Node, and events. It keeps what it watches in memory, trimmed to what the
// agent needs, and works from that memory while the API server is away. It decides nothing.
package kube
