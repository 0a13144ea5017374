package nstest

import (
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// leakTime is how long the kernel may take to end namespaces, and Go to end the threads that were in them.
const leakTime = 20 * time.Second

// Main is for TestMain: it runs the tests and fails when they leave something behind: network namespaces, this process's
// descriptors, or, in the namespace that it runs in, links, addresses, rules, routes or neighbours.
func Main(m *testing.M) int {
	tb := mainTB{}
	own, err := netns.Get()
	if err != nil {
		fmt.Fprintln(os.Stderr, "open the own network namespace:", err)
		return 1
	}
	h, err := netlink.NewHandleAt(own)
	if err != nil {
		fmt.Fprintln(os.Stderr, "open netlink in the own network namespace:", err)
		return 1
	}
	host := &NS{Handle: h, fd: own}
	defer host.Close()
	snapshot, namespaces := host.Snapshot(tb), Namespaces(tb)
	before := openFiles(tb)

	code := m.Run()

	leaks := func() (out []string) {
		for _, l := range host.Snapshot(tb) {
			if !slices.Contains(snapshot, l) {
				out = append(out, l)
			}
		}
		for _, n := range Namespaces(tb) {
			if !slices.Contains(namespaces, n) {
				out = append(out, "network namespace "+n)
			}
		}
		if now := openFiles(tb); len(now) > len(before) {
			out = append(out, fmt.Sprintf("%d descriptors are open, %d before: %q", len(now), len(before), now))
		}
		return out
	}
	left := leaks()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(leakTime); len(left) > 0 && time.Now().Before(end); left = leaks() {
		<-tick.C
	}
	for _, l := range left {
		fmt.Fprintln(os.Stderr, "the tests have left behind:", l)
		code = max(code, 1)
	}
	return code
}

// openFiles lists what this process's descriptors lead to, without Go's own poller and what only this look opens.
func openFiles(t testing.TB) (out []string) {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		to, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && to != "anon_inode:[eventpoll]" && to != "anon_inode:[eventfd]" {
			out = append(out, to)
		}
	}
	return out
}

// mainTB stands where no test runs yet, or none any more.
type mainTB struct{ testing.TB }

func (mainTB) Helper() {}

func (mainTB) Fatal(args ...any) { panic(fmt.Sprint(args...)) }

func (mainTB) Fatalf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
