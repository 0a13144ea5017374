package ipamd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/test/truth"
)

// end has everything come to rest: all pods go, and what is left is what there should be.
func (a *acts) end() {
	a.rt.Helper()
	a.did("the end")
	a.setAPI(true)
	a.cloud.calm()
	a.setDisk(nil)
	a.badNetlink(0, 0)
	a.done()
	a.pass(nobodyKnows)
	for _, p := range a.pods {
		if b := a.living(p); b != nil {
			a.del(b, true)
		}
	}
	a.done()
	for _, p := range a.pods {
		a.remove(p)
	}
	a.pass(20 * time.Minute)
	if wrong := a.left(); len(wrong) > 0 {
		a.rt.Fatalf("after all is over: %q", wrong)
	}
	for _, p := range a.pods {
		if err := a.cluster.Create(context.Background(), a.podOf(p, "last-"+p)); err != nil {
			a.rt.Fatalf("%v", err)
		}
		a.uids[p] = "last-" + p
		a.add(p)
	}
	a.done()
	for _, p := range a.pods {
		if a.living(p) == nil {
			a.rt.Fatalf("pod %s has no address: %v", p, a.sandboxes[p].err)
		}
	}
}

// left is what is not as it should be on an instance without pods.
func (a *acts) left() (wrong []string) {
	agent := a.running().a
	if v := agent.store.View(); len(v.Allocations)+len(v.Cooling)+len(v.Leaving)+len(v.Retiring) > 0 {
		wrong = append(wrong, fmt.Sprintf("the agent remembers %+v", v))
	}
	if agent.opt.Config.IPv6 {
		return append(wrong, a.leftIPv6()...)
	}
	can := map[truth.Grant]bool{}
	for _, c := range agent.candidates() {
		can[truth.Grant{Address: c.Address, ENI: c.ENIID, Card: c.Card, Device: c.Device}] = true
	}
	for id, e := range a.cloud.enis() {
		if e.Device < 0 {
			wrong = append(wrong, fmt.Sprintf("%s is left behind", id))
			continue
		}
		var all []netip.Addr
		all = append(all, e.Addresses[1:]...)
		for _, p := range e.Prefixes {
			for addr := p.Addr(); p.Contains(addr); addr = addr.Next() {
				all = append(all, addr)
			}
		}
		for _, addr := range all {
			g := truth.Grant{Address: addr, ENI: id, Card: e.Card, Device: e.Device}
			if !can[g] {
				wrong = append(wrong, fmt.Sprintf("%v can't be given", g))
			}
			delete(can, g)
		}
	}
	for g := range can {
		wrong = append(wrong, fmt.Sprintf("%v can be given, and the VPC does not have it", g))
	}
	slices.Sort(wrong)
	return wrong
}
