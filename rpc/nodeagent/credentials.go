package nodeagent

import (
	"context"
	"net"

	"google.golang.org/grpc/credentials"

	"github.com/branchline-cni/branchline/rpc/peercred"
)

// Peer is what the kernel says of the process at the other end of a connection. A server handler finds it as the
// AuthInfo of google.golang.org/grpc/peer.
type Peer struct {
	credentials.CommonAuthInfo
	peercred.Cred
}

// AuthType implements credentials.AuthInfo.
func (Peer) AuthType() string { return "unix-peer" }

// peerCredentials takes the place of TLS on a unix socket: no byte is exchanged, so peers that use gRPC's "insecure"
// credentials (the network policy agent does) can still talk to us, and they are checked all the same.
type peerCredentials struct {
	uid     uint32
	refused func(error) // told of each refusal; may be nil
}

// NewServerCredentials returns transport credentials that accept connections from root only, by SO_PEERCRED.
func NewServerCredentials() credentials.TransportCredentials { return peerCredentials{uid: 0} }

func (c peerCredentials) check(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	cred, err := peercred.Of(conn)
	if err == nil {
		err = cred.Check(c.uid)
	}
	if err != nil {
		if c.refused != nil {
			c.refused(err)
		}
		return nil, nil, err
	}
	return conn, Peer{credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, cred}, nil
}

func (c peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.check(conn)
}

func (c peerCredentials) ClientHandshake(_ context.Context, _ string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return c.check(conn)
}

func (c peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: Peer{}.AuthType()}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName implements credentials.TransportCredentials; a unix socket has no server name.
func (c peerCredentials) OverrideServerName(string) error { return nil }
