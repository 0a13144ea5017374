// Package unary makes unary gRPC calls, one after the other, over one connection to a unix socket: what the CNI
// executable needs of gRPC, at a start-up cost that a process which lives for milliseconds can pay. The gRPC library is
// the largest single cost of such a process (docs/benchmarks.md).
//
// On the wire it is gRPC over HTTP/2 without TLS, for any server: the protocol is that of RFC 9113 and of gRPC's
// PROTOCOL-HTTP2.md. The server's process is known by SO_PEERCRED.
//
// It is not for streams, for calls at the same time, for other transports than unix sockets, nor for compression,
// metadata, retry policies or load balancing: who needs these takes google.golang.org/grpc (rpc/nodeagent does).
//
// session.go and answer.go are the protocol without any I/O, conn.go is the socket.
package unary
