// Package peercred asks the kernel who is at the other end of a unix socket (SO_PEERCRED, unix(7)). It is one package
// for both ends of the node's sockets, and imports nothing that costs time at start.
package peercred

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// ErrRefused is wrapped by the error of a connection whose other end is not who it has to be.
var ErrRefused = errors.New("the process at the other end of the socket is not root")

// Cred is what the kernel says of the process at the other end of a connection.
type Cred struct {
	PID int32
	UID uint32
	GID uint32
}

// OfFD reads the credentials of a connected socket's peer: on an accepted connection the process that connected, on a
// dialled one the process that called listen(2).
func OfFD(fd int) (Cred, error) {
	c, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil {
		return Cred{}, fmt.Errorf("read SO_PEERCRED of the socket: %w", err)
	}
	return Cred{PID: c.Pid, UID: c.Uid, GID: c.Gid}, nil
}

// Of is OfFD for a connection of package net.
func Of(conn net.Conn) (c Cred, err error) {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return c, fmt.Errorf("%w: %T is not a unix socket, its owner can't be known", ErrRefused, conn)
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return c, fmt.Errorf("read the credentials of the socket's peer: %w", err)
	}
	if ctl := raw.Control(func(fd uintptr) { c, err = OfFD(int(fd)) }); ctl != nil {
		return c, fmt.Errorf("read the credentials of the socket's peer: %w", ctl)
	}
	return c, err
}

// Check refuses a peer with another user id than uid.
func (c Cred) Check(uid uint32) error {
	if c.UID != uid {
		return fmt.Errorf("%w: pid %d has uid %d, wanted uid %d", ErrRefused, c.PID, c.UID, uid)
	}
	return nil
}
