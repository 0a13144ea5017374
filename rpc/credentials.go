package rpc

import (
	"context"
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/credentials"
)

// ErrPeerRefused is wrapped by the error of a connection whose other end is not root.
var ErrPeerRefused = errors.New("the process at the other end of the socket is not root")

// Peer is what the kernel says of the process at the other end of a connection. A server handler finds it as the
// AuthInfo of google.golang.org/grpc/peer.
type Peer struct {
	credentials.CommonAuthInfo
	PID int32
	UID uint32
	GID uint32
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
	peer, err := peerOf(conn)
	if err == nil && peer.UID != c.uid {
		err = fmt.Errorf("%w: pid %d has uid %d, wanted uid %d", ErrPeerRefused, peer.PID, peer.UID, c.uid)
	}
	if err != nil {
		if c.refused != nil {
			c.refused(err)
		}
		return nil, nil, err
	}
	return conn, peer, nil
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

// peerOf reads SO_PEERCRED: on an accepted connection the process that connected, on a dialled one the process that
// called listen(2).
func peerOf(conn net.Conn) (Peer, error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return Peer{}, fmt.Errorf("%w: %T is not a unix socket, its owner can't be known", ErrPeerRefused, conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return Peer{}, fmt.Errorf("read the credentials of the socket's peer: %w", err)
	}
	var cred *unix.Ucred
	var optErr error
	if err := raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return Peer{}, fmt.Errorf("read the credentials of the socket's peer: %w", err)
	}
	if optErr != nil {
		return Peer{}, fmt.Errorf("read SO_PEERCRED of the socket: %w", optErr)
	}
	return Peer{
		CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity},
		PID:            cred.Pid, UID: cred.Uid, GID: cred.Gid,
	}, nil
}
