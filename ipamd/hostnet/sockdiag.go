package hostnet

import (
	"context"
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// The kubelet's port, and the kernel's interface to list sockets (linux/sock_diag.h, linux/inet_diag.h).
const (
	kubeletPort       = 10250
	sockDiagByFamily  = 20
	tcpListen         = 10
	diagRequestLength = 56
	diagReplyLength   = 72
	diagPortAt        = 4
	diagUIDAt         = 64
	diagCgroupID      = 21
)

// listener is a listening TCP socket.
type listener struct {
	port   uint16
	uid    uint32
	cgroup uint64 // its id in the unified hierarchy; 0: the kernel didn't say
}

// kubeletCgroup finds the kubelet's cgroup by the port on which it listens in this network namespace. So no path of the
// host has to be known or mounted, whichever way the kubelet was started.
func kubeletCgroup(ctx context.Context) (uint64, error) {
	var all []listener
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		l, err := listeners(ctx, family)
		if err != nil {
			return 0, err
		}
		all = append(all, l...)
	}
	return chooseKubelet(all)
}

func chooseKubelet(all []listener) (uint64, error) {
	var ids []uint64
	for _, l := range all {
		if l.port == kubeletPort && l.uid == 0 {
			ids = append(ids, l.cgroup)
		}
	}
	slices.Sort(ids)
	switch ids = slices.Compact(ids); {
	case len(ids) == 0:
		return 0, ErrNoKubelet
	case len(ids) > 1:
		return 0, fmt.Errorf("port %d has listeners in %d cgroups: which is the kubelet?", kubeletPort, len(ids))
	case ids[0] <= rootCgroup:
		return 0, ErrNoCgroup
	}
	return ids[0], nil
}

func listeners(ctx context.Context, family uint8) ([]listener, error) {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, nil)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket for sockets: %w", err)
	}
	defer c.Close()
	end := time.Now().Add(rtnl.Timeout)
	if d, ok := ctx.Deadline(); ok && d.Before(end) {
		end = d
	}
	if err := c.SetDeadline(end); err != nil {
		return nil, fmt.Errorf("set the netlink socket's deadline: %w", err)
	}
	request := make([]byte, diagRequestLength)
	request[0], request[1] = family, unix.IPPROTO_TCP
	binary.NativeEndian.PutUint32(request[4:], 1<<tcpListen)
	replies, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: request,
	})
	if err != nil {
		return nil, fmt.Errorf("list the listening sockets: %w", err)
	}
	var out []listener
	for _, r := range replies {
		if l, ok := parseListener(r.Data); ok {
			out = append(out, l)
		}
	}
	return out, nil
}

func parseListener(b []byte) (l listener, ok bool) {
	if len(b) < diagReplyLength {
		return l, false
	}
	l.port = binary.BigEndian.Uint16(b[diagPortAt:])
	l.uid = binary.NativeEndian.Uint32(b[diagUIDAt:])
	for kind, value := range attributes(b[diagReplyLength:]) {
		if kind == diagCgroupID && len(value) == 8 {
			l.cgroup = binary.NativeEndian.Uint64(value)
		}
	}
	return l, true
}
