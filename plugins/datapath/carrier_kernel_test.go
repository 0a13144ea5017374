//go:build kernel

package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestWhatIsSentToAPodRightAfterItsADDIsNotLost: a veth's end that was up before the other one carries nothing until the kernel
// has looked at its carrier, which it does in its own time.
func TestWhatIsSentToAPodRightAfterItsADDIsNotLost(t *testing.T) {
	const pods, atOnce = 64, 16
	host := nstest.New(t)
	var wg sync.WaitGroup
	var early atomic.Int64
	turn := make(chan struct{}, atOnce)
	for i := range pods {
		pod := nstest.New(t)
		p, err := NewPlan(Request{
			Owner: Owner{fmt.Sprint("sandbox-", i), "eth0"}, PodNamespace: "shop", PodName: fmt.Sprint("web-", i), VethPrefix: "eni", MTU: 1500,
			Address: netip.AddrFrom4([4]byte{192, 168, 47, byte(i + 1)}), Regular: &Regular{RouteTable: 2},
		})
		if err != nil {
			t.Fatal(err)
		}
		wg.Go(func() {
			turn <- struct{}{}
			defer func() { <-turn }()
			err := host.Try(func() error {
				if err := Apply(context.Background(), p, pod.FD()); err != nil {
					return err
				}
				// A dump leaves carriers alone, which a question for one link does not.
				links, err := netlink.LinkList()
				if errors.Is(err, netlink.ErrDumpInterrupted) {
					err = nil // others come meanwhile; this one is there
				}
				for _, l := range links {
					if l.Attrs().Name == p.HostVeth.Host && l.Attrs().OperState != netlink.OperUp {
						early.Add(1)
					}
				}
				return err
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := early.Load(); n > 0 {
		t.Errorf("of %d pods %d could not be sent anything yet", pods, n)
	}
}
