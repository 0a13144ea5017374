// Package nstest gives kernel tests throw-away network namespaces and the means to see what a test has left in them.
// It is for tests only.
package nstest

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"

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
	if err := n.Handle.AddrAdd(n.Link(t, link), a); err != nil {
		t.Fatalf("add %s to %s: %v", cidr, link, err)
	}
}

// Route adds a route.
func (n *NS) Route(t testing.TB, r netlink.Route) {
	t.Helper()
	if err := n.Handle.RouteReplace(&r); err != nil {
		t.Fatalf("add route %s: %v", r, err)
	}
}

// Sysctl writes net.ipv4.<key>, with slashes.
func (n *NS) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	n.Do(t, func() error { return os.WriteFile("/proc/sys/net/ipv4/"+key, []byte(value), 0) })
}

// ReadSysctl reads net.ipv4.<key>, with slashes.
func (n *NS) ReadSysctl(t testing.TB, key string) string {
	t.Helper()
	var value []byte
	n.Do(t, func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/ipv4/" + key)
		return err
	})
	return strings.TrimSpace(string(value))
}

// Rules lists the IPv4 rules, one text each.
func (n *NS) Rules(t testing.TB) []string {
	t.Helper()
	rules, err := n.Handle.RuleList(unix.AF_INET)
	if err != nil {
		t.Fatalf("list rules: %v", err)
	}
	var out []string
	for _, r := range rules {
		src := "all"
		if r.Src != nil {
			src = r.Src.String()
		}
		iif := ""
		if r.IifName != "" {
			iif = " iif " + r.IifName
		}
		out = append(out, fmt.Sprintf("%d: from %s%s lookup %d", r.Priority, src, iif, r.Table))
	}
	slices.Sort(out)
	return out
}

// Routes lists the IPv4 routes of one table, 0 for all tables.
func (n *NS) Routes(t testing.TB, table int) []string {
	t.Helper()
	routes, err := n.Handle.RouteListFiltered(unix.AF_INET, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatalf("list routes of table %d: %v", table, err)
	}
	var out []string
	for _, r := range routes {
		dst, via := "default", ""
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			dst = r.Dst.String()
		}
		if r.Gw != nil {
			via = " via " + r.Gw.String()
		}
		out = append(out, fmt.Sprintf("%s%s dev %s scope %s table %d", dst, via, n.linkName(r.LinkIndex), r.Scope, r.Table))
	}
	slices.Sort(out)
	return out
}

func (n *NS) linkName(index int) string {
	l, err := n.Handle.LinkByIndex(index)
	if err != nil {
		return fmt.Sprint(index)
	}
	return l.Attrs().Name
}

// Snapshot is everything that a sandbox could leave in a namespace: links with their state, addresses, IPv4 and IPv6
// rules, IPv4 routes of all tables, neighbours that don't age.
func (n *NS) Snapshot(t testing.TB) []string {
	t.Helper()
	var out []string
	links, err := n.Handle.LinkList()
	if err != nil {
		t.Fatalf("list links: %v", err)
	}
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s %s up=%t", l.Attrs().Name, l.Type(), l.Attrs().Alias, l.Attrs().RawFlags&unix.IFF_UP != 0))
		addrs, err := n.Handle.AddrList(l, unix.AF_INET)
		if err != nil {
			t.Fatalf("list addresses of %s: %v", l.Attrs().Name, err)
		}
		for _, a := range addrs {
			out = append(out, fmt.Sprintf("address %s %s", l.Attrs().Name, a.IPNet))
		}
	}
	for _, r := range n.Rules(t) {
		out = append(out, "rule "+r)
	}
	for _, r := range n.Routes(t, 0) {
		out = append(out, "route "+r)
	}
	neighs, err := n.Handle.NeighList(0, unix.AF_INET)
	if err != nil {
		t.Fatalf("list neighbours: %v", err)
	}
	for _, e := range neighs {
		if e.State&netlink.NUD_PERMANENT != 0 {
			out = append(out, fmt.Sprintf("neighbour %s %s %s", n.linkName(e.LinkIndex), e.IP, e.HardwareAddr))
		}
	}
	slices.Sort(out)
	return out
}

// Files counts this process's open descriptors.
func Files(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
