//go:build kernel

package hostnet

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// cgroups mounts the unified hierarchy and makes a cgroup for the kubelet in it; within runs f with this process in it.
// What f opens belongs to that cgroup for good.
func cgroups(t *testing.T) (within func(func() error) error) {
	t.Helper()
	root := t.TempDir()
	if err := unix.Mount("none", root, "cgroup2", 0, ""); err != nil {
		t.Fatalf("mount the unified cgroup hierarchy: %v", err)
	}
	home := "/"
	move := func(cgroup string) error {
		return os.WriteFile(filepath.Join(root, cgroup, "cgroup.procs"), []byte(strconv.Itoa(os.Getpid())), 0)
	}
	kubelet := filepath.Join("runtime.slice", "kubelet.service")
	if err := os.MkdirAll(filepath.Join(root, kubelet), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(move(home), os.Remove(filepath.Join(root, kubelet)), os.Remove(filepath.Join(root, "runtime.slice")), unix.Unmount(root, 0)); err != nil {
			t.Error(err)
		}
	})
	return func(f func() error) error {
		if err := move(kubelet); err != nil {
			return err
		}
		return errors.Join(f(), move(home))
	}
}

// listenAsKubelet opens the kubelet's port in the namespace.
func listenAsKubelet(t *testing.T, ns *nstest.NS) {
	t.Helper()
	ns.Do(t, func() error {
		l, err := net.Listen("tcp", ":10250")
		if err == nil {
			t.Cleanup(func() { _ = l.Close() })
		}
		return err
	})
}

// probe opens TCP connections, as the kubelet's probes do.
func probe(from *nstest.NS, to netip.Addr) error {
	return from.Try(func() error {
		for range exchanges {
			c, err := net.DialTimeout("tcp", netip.AddrPortFrom(to, echoPort).String(), patience)
			if err != nil {
				return err
			}
			if err := c.Close(); err != nil {
				return err
			}
		}
		return nil
	})
}

func TestP31TheKubeletsOwnConnectionsStayOnTheNodeIfAsked(t *testing.T) {
	within := cgroups(t)
	for _, family := range families() {
		t.Run(family, func(t *testing.T) {
			w := newWorld(t, isIPv6(family))
			passed := func(what string, connect func() error, want bool) {
				t.Helper()
				out, in := w.seen(t, "p1.7")
				if err := connect(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
				if o, i := w.seen(t, "p1.7"); (o-out >= exchanges || i-in >= exchanges) != want {
					t.Errorf("%s: %d packets passed the VLAN", what, o+i-out-in)
				}
			}
			kubelet := func() error { return within(func() error { return probe(w.node, w.strictAddr) }) }
			other := func() error { return probe(w.node, w.strictAddr) }
			passed("the first, which learns neighbours", other, true)
			passed("the kubelet, nothing asked for", kubelet, true)

			w.d.KubeletLocal = true
			if r := reconcileIn(t, w); !errors.Is(r.Kubelet, ErrNoKubelet) {
				t.Errorf("no kubelet runs: %v", r.Kubelet)
			}
			if err := within(func() error { listenAsKubelet(t, w.node); return nil }); err != nil {
				t.Fatal(err)
			}
			if r := reconcileIn(t, w); r.Kubelet != nil {
				t.Fatal(r.Kubelet)
			}
			passed("the kubelet's probe", kubelet, false)
			passed("another process of root in the host's network", other, true)
			passed("a regular pod", func() error { return probe(w.simple, w.strictAddr) }, true)
			if err := w.ask(w.strict, w.nodeAddr); err != nil {
				t.Errorf("a strict pod to its node: %v", err)
			}

			w.d.KubeletLocal = false
			reconcileIn(t, w)
			passed("the kubelet, not asked for any more", kubelet, true)
		})
	}
}

// reconcileIn works on a thread of the node's namespace, since it asks for the node's sockets.
func reconcileIn(t *testing.T, w *world) (r Result) {
	t.Helper()
	w.node.Do(t, func() (err error) {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		r, err = w.k.Reconcile(ctx, w.d)
		return err
	})
	return r
}

func TestAKubeletWithoutACgroupOfItsOwnIsSaid(t *testing.T) {
	node := nstest.New(t)
	listenAsKubelet(t, node)
	k := open(t, node)
	w := &world{node: node, k: k, d: Desired{LocalBehindPods: true, KubeletLocal: true, VethPrefix: "eni"}}
	if r := reconcileIn(t, w); !errors.Is(r.Kubelet, ErrNoCgroup) {
		t.Errorf("got %v", r.Kubelet)
	}
}

// TestRulesOnCgroupsAreNotMadeWhereTheyWouldMeanOthers: the agent's container has a cgroup namespace of its own, and on
// newer kernels the levels in its rules count from there.
func TestRulesOnCgroupsAreNotMadeWhereTheyWouldMeanOthers(t *testing.T) {
	within := cgroups(t)
	node := nstest.New(t)
	var fromContainer, fromHost bool
	var refused error
	err := within(func() error {
		done := make(chan error)
		go func() {
			runtime.LockOSThread() // never unlocked: the thread is not for others any more
			done <- func() error {
				if err := unix.Unshare(unix.CLONE_NEWCGROUP); err != nil {
					return err
				}
				if err := unix.Setns(node.FD(), unix.CLONE_NEWNET); err != nil {
					return err
				}
				k, err := NewKernel()
				if err != nil {
					return err
				}
				defer k.Close()
				fromContainer = k.seesHostCgroups(context.Background(), false)
				_, refused = k.kubeletRules(context.Background(), false)
				return nil
			}()
		}()
		return <-done
	})
	if err != nil {
		t.Fatal(err)
	}
	k := open(t, node)
	fromHost = k.seesHostCgroups(context.Background(), false)
	t.Logf("this kernel counts levels from the maker's namespace: %t", !fromContainer)
	if !fromHost {
		t.Error("refused on the host")
	}
	if fromContainer != (refused == nil) || refused != nil && !errors.Is(refused, ErrForeignCgroups) {
		t.Errorf("sees the host's: %t; making the rules: %v", fromContainer, refused)
	}
	if err := k.MakeKubeletTable(context.Background(), false); err != nil {
		t.Error(err)
	}
}
