//go:build kernel

package datapath

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestVerifyNamesTheFirstDifference harms each object of a wired sandbox, one at a time, and puts the wiring in place
// again.
func TestVerifyNamesTheFirstDifference(t *testing.T) {
	host, vpc, pod := nstest.New(t), nstest.New(t), nstest.New(t)
	host.Veth(t, "trunk", vpc, "fabric")
	for name, plan := range testPlan(t, host.Link(t, "trunk").Attrs().Index) {
		t.Run(name, func(t *testing.T) {
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			verify := func() (err error) {
				_ = host.Try(func() error { err = Verify(t.Context(), plan, pod.FD()); return nil })
				return err
			}
			harmed := 0
			for i, step := range plan.Steps {
				if i < beforeTheLast(plan) {
					continue
				}
				is := missing
				host.Do(t, func() error { return Apply(context.Background(), plan, pod.FD()) })
				must(verify())
				ns := map[Side]*nstest.NS{Host: host, Pod: pod}
				switch s := step.(type) {
				case AddVLAN:
					must(host.Handle.LinkSetAlias(host.Link(t, s.Name), MarkPrefix+"another/eth0"))
					is = "is marked"
				case AddVeth:
					must(pod.Handle.LinkSetDown(pod.Link(t, s.Pod)))
					is = "the pod's end is down"
				case SetSysctl:
					host.Sysctl(t, strings.TrimPrefix(s.path(), "/proc/sys/net/"), "1")
					is = "is 1"
				case AddAddress:
					l := ns[s.Side].Link(t, s.Link)
					must(ns[s.Side].Handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(s.Address.Addr())}))
				case AddNeighbour:
					l := ns[s.Side].Link(t, s.Link)
					must(ns[s.Side].Handle.NeighSet(&netlink.Neigh{LinkIndex: l.Attrs().Index, Family: int(family(s.Address.Is6())), State: netlink.NUD_PERMANENT, IP: s.Address.AsSlice(), HardwareAddr: net.HardwareAddr{2, 1, 1, 1, 1, 1}}))
					is = "is at 02:01:01:01:01:01"
				case AddRoute:
					l := ns[s.Side].Link(t, s.Link)
					dst := ipNet(s.Dst.Addr())
					dst.Mask = net.CIDRMask(s.Dst.Bits(), s.Dst.Addr().BitLen())
					scope := netlink.SCOPE_UNIVERSE
					if !s.Gateway.IsValid() && s.Dst.Addr().Is4() {
						scope = netlink.SCOPE_LINK
					}
					must(ns[s.Side].Handle.RouteDel(&netlink.Route{LinkIndex: l.Attrs().Index, Table: s.Table, Dst: dst, Scope: scope}))
				case AddRule:
					r := s.Rule
					r.Side = Host
					ns[s.Side].Do(t, func() error { return justDo(t.Context(), DeleteRule{r}) })
				case DeleteRule:
					stale := s.Rule
					stale.Table = 77
					host.Do(t, func() error { return justDo(t.Context(), AddRule{stale}) })
					is = "is there"
				case DeleteRoute:
					l := host.Link(t, plan.HostVeth.Host)
					must(host.Handle.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Table: s.Table, Dst: ipNet(s.Address), Scope: netlink.SCOPE_LINK}))
					is = "is there"
				case AwaitAddress:
					continue
				}
				harmed++
				err := verify()
				var d *Difference
				if !errors.As(err, &d) || !strings.HasPrefix(d.Is, is) || d.Object != object(step) {
					t.Errorf("harmed %s: %v, want %q", step, err, is)
				}
			}
			if harmed < 10 {
				t.Errorf("only %d objects were harmed", harmed)
			}
			host.Do(t, func() error { return teardown(plan, t.TempDir()) })
			if err := verify(); err == nil {
				t.Error("nothing is there and nothing is missed")
			}
		})
	}
}

func justDo(ctx context.Context, step Step) error {
	k, err := openKernel(ctx, Owner{}, -1)
	if err != nil {
		return err
	}
	defer k.close()
	return errors.Join(k.do(step), k.flush())
}

func teardown(p Plan, dir string) error {
	lock, err := OpenLock(dir + "/lock")
	if err != nil {
		return err
	}
	defer lock.Close()
	_, err = Teardown(context.Background(), Removal{
		Owner: p.Owner, HostVeths: []string{p.HostVeth.Host}, PodNamespace: "shop", PodName: "web",
	}, lock)
	if err != nil {
		return err
	}
	// What the test has added itself.
	var errs []error
	for _, veth := range append([]AddVeth{p.HostVeth}, p.Further...) {
		a := veth.Mark.Address
		for _, r := range []Rule{fromAddress(a), toAddress(a), by(a, PriorityStandard, veth.Host, 0)} {
			errs = append(errs, justDo(context.Background(), DeleteRule{r}))
		}
	}
	return errors.Join(errs...)
}

// ipNet is a single address as the library has it.
func ipNet(a interface {
	AsSlice() []byte
	BitLen() int
}) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}
