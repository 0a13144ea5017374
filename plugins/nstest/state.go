package nstest

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Sysctl writes net.<key>, with slashes: ipv4/ip_forward.
func (n *NS) Sysctl(t testing.TB, key, value string) {
	t.Helper()
	n.Do(t, func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

// ReadSysctl reads net.<key>, with slashes.
func (n *NS) ReadSysctl(t testing.TB, key string) string {
	t.Helper()
	var value []byte
	n.Do(t, func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/" + key)
		return err
	})
	return strings.TrimSpace(string(value))
}

// listed repeats a dump until no change interrupts it.
func listed[T any](t testing.TB, what string, dump func() ([]T, error)) []T {
	t.Helper()
	for {
		list, err := dump()
		if err == nil {
			return list
		}
		if err != netlink.ErrDumpInterrupted {
			t.Fatalf("list %s: %v", what, err)
		}
	}
}

// Rules lists the rules of a family (unix.AF_INET or AF_INET6), one text each.
func (n *NS) Rules(t testing.TB, family int) []string {
	t.Helper()
	var out []string
	for _, r := range listed(t, "rules", func() ([]netlink.Rule, error) { return n.Handle.RuleList(family) }) {
		src, iif := "all", ""
		if r.Src != nil {
			src = r.Src.String()
		}
		if r.IifName != "" {
			iif = " iif " + r.IifName
		}
		out = append(out, fmt.Sprintf("%d: from %s%s lookup %d", max(0, r.Priority), src, iif, r.Table))
	}
	slices.Sort(out)
	return out
}

// Routes lists the routes of one table, 0 for all tables. In IPv6 it leaves out those to link-local and multicast
// addresses, which come and go with links by the kernel's own clock.
func (n *NS) Routes(t testing.TB, family, table int) []string {
	t.Helper()
	var out []string
	for _, r := range listed(t, "routes", func() ([]netlink.Route, error) {
		return n.Handle.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	}) {
		dst, via, kind := "default", "", ""
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() {
			dst = r.Dst.String()
			if own(r.Dst.IP) && r.Table != 0 && r.Protocol == unix.RTPROT_KERNEL {
				continue
			}
		}
		if r.Gw != nil {
			via = " via " + r.Gw.String()
		}
		if r.Type != unix.RTN_UNICAST {
			kind = fmt.Sprintf("type %d ", r.Type)
		}
		out = append(out, fmt.Sprintf("%s%s%s dev %s scope %s table %d", kind, dst, via, n.linkName(r.LinkIndex), r.Scope, r.Table))
	}
	slices.Sort(out)
	return out
}

// own says whether the kernel gives such addresses by itself.
func own(ip net.IP) bool { return ip.To4() == nil && (ip.IsLinkLocalUnicast() || ip.IsMulticast()) }

func (n *NS) linkName(index int) string {
	l, err := n.Handle.LinkByIndex(index)
	if err != nil {
		return fmt.Sprint(index)
	}
	return l.Attrs().Name
}

// Snapshot is everything that a sandbox could leave in a namespace: links with their state, addresses, rules, routes of
// all tables and neighbours that don't age, of both families.
func (n *NS) Snapshot(t testing.TB) []string {
	t.Helper()
	var out []string
	links := listed(t, "links", n.Handle.LinkList)
	for _, l := range links {
		out = append(out, fmt.Sprintf("link %s %s %s up=%t", l.Attrs().Name, l.Type(), l.Attrs().Alias, l.Attrs().RawFlags&unix.IFF_UP != 0))
		for _, a := range listed(t, "addresses", func() ([]netlink.Addr, error) { return n.Handle.AddrList(l, netlink.FAMILY_ALL) }) {
			if !own(a.IP) {
				out = append(out, fmt.Sprintf("address %s %s", l.Attrs().Name, a.IPNet))
			}
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, r := range n.Rules(t, family) {
			out = append(out, fmt.Sprintf("rule of family %d %s", family, r))
		}
		for _, r := range n.Routes(t, family, 0) {
			out = append(out, "route "+r)
		}
		for _, e := range listed(t, "neighbours", func() ([]netlink.Neigh, error) { return n.Handle.NeighList(0, family) }) {
			if e.State&netlink.NUD_PERMANENT != 0 {
				out = append(out, fmt.Sprintf("neighbour %s %s %s", n.linkName(e.LinkIndex), e.IP, e.HardwareAddr))
			}
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

// Namespaces lists the network namespaces that some process is in or holds a descriptor of. One that is in the list after
// a test and was not before has been leaked.
func Namespaces(t testing.TB) []string {
	t.Helper()
	seen := map[string]bool{}
	// Go never ends the process's first thread: a goroutine that was locked to it leaves it where it was.
	first := fmt.Sprintf("/proc/%d/task/%d/ns/net", os.Getpid(), os.Getpid())
	for _, pattern := range []string{"/proc/[0-9]*/task/[0-9]*/ns/net", "/proc/[0-9]*/fd/*"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range paths {
			// A process may have ended meanwhile.
			if to, err := os.Readlink(p); err == nil && p != first && strings.HasPrefix(to, "net:[") {
				seen[to] = true
			}
		}
	}
	out := make([]string, 0, len(seen))
	for ns := range seen {
		out = append(out, ns)
	}
	slices.Sort(out)
	return out
}
