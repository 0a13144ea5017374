// Package rtnl opens the agent's rtnetlink sockets and repeats dumps that the kernel says were interrupted. What is read and
// changed by them is the callers': the links in enis, rules and routes in hostnet.
package rtnl

import (
	"errors"
	"fmt"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// Timeout bounds each request on a netlink socket, of whatever family.
	Timeout = 5 * time.Second
	tries   = 10
)

// Open opens a socket in the current network namespace; every request on it has a deadline. Close it with its Close.
func Open() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(Timeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
	}
	return h, nil
}

// Dump repeats a dump that was interrupted by a change: a part of it may be missing then. It gives up when that happens ten
// times in a row.
func Dump[T any](f func() ([]T, error)) (all []T, err error) {
	for range tries {
		if all, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			return all, err
		}
	}
	return nil, err
}
