// Package nstest gives kernel tests throw-away network namespaces and the means to see what a test has left in them.
// It is for tests only.
package nstest

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// NS is a network namespace that lives as long as the test.
type NS struct {
	Handle *netlink.Handle
	fd     netns.NsHandle
}

// New makes a namespace with lo up.
func New(t testing.TB) *NS {
	t.Helper()
	n := &NS{}
	type made struct {
		fd  netns.NsHandle
		err error
	}
	result := make(chan made)
	go func() {
		// The thread is never unlocked, so that the runtime ends it together with its namespace.
		runtime.LockOSThread()
		fd, err := netns.New()
		result <- made{fd, err}
	}()
	r := <-result
	if r.err != nil {
		t.Fatalf("make a network namespace (this test needs root): %v", r.err)
	}
	n.fd = r.fd
	h, err := netlink.NewHandleAt(n.fd, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatalf("open netlink in the new namespace: %v", err)
	}
	n.Handle = h
	t.Cleanup(n.Close)
	n.Up(t, "lo")
	return n
}

// Close drops the namespace; the kernel removes it and its links soon afterwards.
func (n *NS) Close() {
	if n.fd.IsOpen() {
		n.Handle.Close()
		n.fd.Close()
	}
}

// FD is a descriptor of the namespace.
func (n *NS) FD() int { return int(n.fd) }

// Path leads other processes of this user to the namespace.
func (n *NS) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), int(n.fd)) }

// Do runs f on a thread that is in the namespace; processes that f starts are in it too.
func (n *NS) Do(t testing.TB, f func() error) {
	t.Helper()
	if err := n.Try(f); err != nil {
		t.Fatal(err)
	}
}

// Try is Do for callers that handle the error.
func (n *NS) Try(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(n.fd); err != nil {
			result <- err
			return
		}
		result <- f()
	}()
	return <-result
}

// Link returns a link of the namespace, nil when there is none of the name.
func (n *NS) Link(t testing.TB, name string) netlink.Link {
	t.Helper()
	l, err := n.Handle.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return nil
	}
	if err != nil {
		t.Fatalf("look up %s: %v", name, err)
	}
	return l
}

// Up brings a link up.
func (n *NS) Up(t testing.TB, name string) {
	t.Helper()
	if l := n.Link(t, name); l == nil {
		t.Fatalf("no link %s", name)
	} else if err := n.Handle.LinkSetUp(l); err != nil {
		t.Fatalf("bring up %s: %v", name, err)
	}
}

// Veth makes a veth with one end in n and the other in peer, both up.
func (n *NS) Veth(t testing.TB, name string, peer *NS, peerName string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, 9001
	v := netlink.NewVeth(attrs)
	v.PeerName, v.PeerNamespace, v.PeerMTU = peerName, netlink.NsFd(peer.fd), 9001
	if err := n.Handle.LinkAdd(v); err != nil {
		t.Fatalf("make veth %s: %v", name, err)
	}
	n.Up(t, name)
	peer.Up(t, peerName)
}

// Address adds an address in CIDR form to a link.
func (n *NS) Address(t testing.TB, link, cidr string) {
	t.Helper()
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		t.Fatal(err)
	}
	if a.IP.To4() != nil {
		if err := n.Handle.AddrAdd(n.Link(t, link), a); err != nil {
			t.Fatalf("add %s to %s: %v", cidr, link, err)
		}
		return
	}
	// An IPv6 address is taken at once and put to use, with a route to it, some time later.
	events, done := make(chan netlink.RouteUpdate, 64), make(chan struct{})
	defer close(done)
	if err := netlink.RouteSubscribeAt(n.fd, events, done); err != nil {
		t.Fatalf("hear of routes: %v", err)
	}
	a.Flags = unix.IFA_F_NODAD
	if err := n.Handle.AddrAdd(n.Link(t, link), a); err != nil {
		t.Fatalf("add %s to %s: %v", cidr, link, err)
	}
	late := time.NewTimer(time.Minute)
	defer late.Stop()
	for !n.isLocal(a.IP) && !a.IP.IsLinkLocalUnicast() {
		select {
		case <-events:
		case <-late.C:
			t.Fatalf("%s of %s is not put to use", cidr, link)
		}
	}
}

func (n *NS) isLocal(ip net.IP) bool {
	routes, err := n.Handle.RouteGetWithOptions(ip, &netlink.RouteGetOptions{FIBMatch: true})
	return err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL
}

// Route adds a route.
func (n *NS) Route(t testing.TB, r netlink.Route) {
	t.Helper()
	if err := n.Handle.RouteReplace(&r); err != nil {
		t.Fatalf("add route %s: %v", r, err)
	}
}
