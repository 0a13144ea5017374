//go:build kernel

package datapath

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// failing is a context that ends at the n-th time it is asked, which Apply does before each step.
type failing struct {
	context.Context
	left int
}

func (f *failing) Err() error {
	if f.left == 0 {
		return context.Canceled
	}
	f.left--
	return nil
}

func testPlan(t *testing.T, trunk int) map[string]Plan {
	t.Helper()
	mac, _ := net.ParseMAC("06:20:0d:3c:5f:bc")
	plans := map[string]Plan{}
	for name, change := range map[string]func(*Request){
		"branch": func(r *Request) {
			r.Branch = &Branch{VLAN: 7, MAC: mac, Gateway: netip.MustParseAddr("192.168.32.1"), TrunkIfindex: trunk}
		},
		"standard": func(r *Request) {
			r.Branch = &Branch{VLAN: 7, MAC: mac, Gateway: netip.MustParseAddr("192.168.32.1"), TrunkIfindex: trunk, Mode: Standard}
		},
		"branch of IPv6": func(r *Request) {
			r.Address = netip.MustParseAddr("2001:db8::7")
			r.Branch = &Branch{VLAN: 7, MAC: mac, Gateway: netip.MustParseAddr("fe80:ec2::1"), TrunkIfindex: trunk}
		},
		"regular": func(r *Request) { r.Regular = &Regular{RouteTable: 2} },
		"regular of IPv6": func(r *Request) {
			r.Address, r.Regular = netip.MustParseAddr("2001:db8::7"), &Regular{RouteTable: 2}
		},
		"several": func(r *Request) {
			r.Regular = &Regular{}
			r.Further = []Further{{netip.MustParseAddr("192.168.48.64"), Regular{10101}}, {netip.MustParseAddr("192.168.49.64"), Regular{}}}
		},
		"several of IPv6": func(r *Request) {
			r.Address, r.Regular = netip.MustParseAddr("2001:db8::7"), &Regular{}
			r.Further = []Further{{netip.MustParseAddr("2001:db8:1::7"), Regular{10101}}}
		},
	} {
		r := Request{
			Owner: Owner{"sandbox-1", "eth0"}, PodNamespace: "shop", PodName: "web", VethPrefix: "eni", MTU: 9001,
			Address: netip.MustParseAddr("192.168.47.64"),
		}
		change(&r)
		p, err := NewPlan(r)
		if err != nil {
			t.Fatal(err)
		}
		plans[name] = p
	}
	return plans
}

// beforeTheLast is how many steps a pod with several interfaces has before those of its last: the first's are a regular pod's,
// which has its own tests, and all that it has is there while the last's fail.
func beforeTheLast(p Plan) int {
	if len(p.Further) == 0 {
		return 0
	}
	return slices.IndexFunc(p.Steps, func(s Step) bool {
		veth, ok := s.(AddVeth)
		return ok && veth.Mark.Number == len(p.Further)
	})
}

func TestApplyUndoesEverythingWhicheverStepFails(t *testing.T) {
	host, vpc, pod := nstest.New(t), nstest.New(t), nstest.New(t)
	host.Veth(t, "trunk", vpc, "fabric")
	for name, plan := range testPlan(t, host.Link(t, "trunk").Attrs().Index) {
		pod := pod
		if len(plan.Further) > 0 {
			pod = nstest.New(t)
		}
		t.Run(name, func(t *testing.T) {
			hostBefore, podBefore, files := host.Snapshot(t), pod.Snapshot(t), nstest.Files(t)
			unchanged := func(step string) {
				t.Helper()
				if after := host.Snapshot(t); !slices.Equal(hostBefore, after) {
					t.Fatalf("%s: left on the host: %q, before: %q", step, after, hostBefore)
				}
				after := pod.Snapshot(t)
				if step == "teardown" {
					// What needs no link goes with the namespace only.
					after = slices.DeleteFunc(after, func(line string) bool { return strings.Contains(line, " 1: from ") })
				}
				if !slices.Equal(podBefore, after) {
					t.Fatalf("%s: left in the pod: %q", step, after)
				}
			}
			for i, step := range plan.Steps {
				if i < beforeTheLast(plan) {
					continue
				}
				// Ended before the step, and the step itself refused by the kernel.
				err := host.Try(func() error {
					return Apply(&failing{context.Background(), i}, plan, pod.FD())
				})
				if !errors.Is(err, context.Canceled) && err == nil {
					t.Fatalf("ended before %s: %v", step, err)
				}
				unchanged("ended before " + step.String())
				broken := plan
				broken.Steps = slices.Insert(slices.Clone(plan.Steps), i+1, Step(AddRoute{Table: 900, Dst: single(plan.Address), Link: "no-such-link"}))
				err = host.Try(func() error { return Apply(context.Background(), broken, pod.FD()) })
				var failed *StepError
				if !errors.As(err, &failed) {
					t.Fatalf("failing after %s: %v", step, err)
				}
				unchanged("failing after " + step.String())
			}
			host.Do(t, func() error { return Apply(context.Background(), plan, pod.FD()) })
			host.Do(t, func() error { return Verify(context.Background(), plan, pod.FD()) })
			lock, err := OpenLock(t.TempDir() + "/lock")
			if err != nil {
				t.Fatal(err)
			}
			host.Do(t, func() error {
				_, err := Teardown(context.Background(), Removal{
					Owner: plan.Owner, PodNamespace: "shop", PodName: "web", HostVeths: []string{plan.HostVeth.Host},
				}, lock)
				return err
			})
			lock.Close()
			unchanged("teardown")
			if now := nstest.Files(t); now > files {
				t.Errorf("%d descriptors open, %d before", now, files)
			}
		})
	}
}

// TestALinkThatWasNotMarkedYetIsRepaired: the executable was killed between making a link and marking it.
func TestALinkThatWasNotMarkedYetIsRepaired(t *testing.T) {
	host, vpc, pod := nstest.New(t), nstest.New(t), nstest.New(t)
	host.Veth(t, "trunk", vpc, "fabric")
	for name, plan := range testPlan(t, host.Link(t, "trunk").Attrs().Index) {
		t.Run(name, func(t *testing.T) {
			before := host.Snapshot(t)
			host.Do(t, func() error {
				k, err := openKernel(context.Background(), plan.Owner, pod.FD())
				if err != nil {
					return err
				}
				defer k.close()
				return k.do(plan.Steps[0])
			})
			host.Do(t, func() error { return Apply(context.Background(), plan, pod.FD()) })
			host.Do(t, func() error { return teardown(plan, t.TempDir()) })
			if after := host.Snapshot(t); !slices.Equal(before, after) {
				t.Errorf("left: %q, before: %q", after, before)
			}
		})
	}
}

// TestFurtherLinksThatWereNotMarkedYetAreFoundWithoutAResult: the executable was killed after it had made some of the links,
// and before the marks, which go together, say how many there were to be.
func TestFurtherLinksThatWereNotMarkedYetAreFoundWithoutAResult(t *testing.T) {
	host, pod := nstest.New(t), nstest.New(t)
	plan := testPlan(t, 1)["several"]
	before := host.Snapshot(t)
	for made := 1; made <= 3; made++ {
		host.Do(t, func() error {
			k, err := openKernel(t.Context(), plan.Owner, pod.FD())
			if err != nil {
				return err
			}
			defer k.close()
			left := made
			for _, step := range plan.Steps {
				if _, ok := step.(AddVeth); ok && left > 0 {
					left--
					if err := k.do(step); err != nil {
						return err
					}
				}
			}
			return nil
		})
		if made == 3 {
			// The first one's is gone with an ADD of the pod's next sandbox, say.
			if err := host.Handle.LinkDel(host.Link(t, plan.HostVeth.Host)); err != nil {
				t.Fatal(err)
			}
		}
		host.Do(t, func() error { return teardown(plan, t.TempDir()) })
		if after := host.Snapshot(t); !slices.Equal(before, after) {
			t.Errorf("%d links were made; left: %q, before: %q", made, after, before)
		}
	}
}
