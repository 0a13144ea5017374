package ipamd

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
)

const (
	// forgetMost bounds how long old connections are looked for, and so how long a pod waits for that.
	forgetMost = 2 * time.Second
	// forgetEvery is the least time between two walks through the kernel's table that nobody waits for.
	forgetEvery = time.Second
)

// past knows which free addresses have no connections of their last pod any more. What the agent doesn't know, after its
// start for one, has some.
type past struct {
	mu        sync.Mutex // held while connections are deleted: an address isn't given meanwhile
	forgotten map[netip.Addr]bool
	// answered are the sandboxes that this process has told their address, whose connections are their own since.
	answered map[store.Key]bool
}

// runForget has the kernel forget what it knows of addresses that are free again. That is done once their cool-down is
// over, and not at their pods' end, as others go on calling them for a while.
func (a *Agent) runForget(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C()}
		switch some, ok := a.forgetFree(ctx); {
		case !ok:
			wait(ctx, retry.next())
		case some:
			retry = 0
			wait(ctx, forgetEvery)
		default:
			wait(ctx, a.nextCooled(), channels...)
		}
	}
}

// forgetFree looks at every free address that has a past, all at once. It says whether there were any, and whether it went
// well.
func (a *Agent) forgetFree(ctx context.Context) (some, ok bool) {
	ctx, cancel := context.WithTimeout(ctx, forgetMost)
	defer cancel()
	a.past.mu.Lock()
	defer a.past.mu.Unlock()
	busy := map[netip.Addr]bool{}
	v := a.store.View()
	answered := map[store.Key]bool{}
	for _, al := range v.Allocations {
		for _, address := range al.Addresses() {
			busy[address] = true
		}
		if a.past.answered[al.Key] {
			answered[al.Key] = true
		}
	}
	a.past.answered = answered
	for _, c := range v.Cooling {
		busy[c.Address] = true
	}
	var free []netip.Addr
	still := map[netip.Addr]bool{} // of addresses that are not this node's any more nothing is known
	for _, c := range a.candidates() {
		switch {
		case a.past.forgotten[c.Address]:
			still[c.Address] = true
		case !busy[c.Address]:
			free = append(free, c.Address)
		}
	}
	a.past.forgotten = still
	if len(free) == 0 {
		return false, true
	}
	if !a.forget(ctx, free) {
		return true, false
	}
	for _, f := range free {
		a.past.forgotten[f] = true
	}
	return true, true
}

// forgetPast is for addresses that are being given and may still have a past: the pool is short of addresses, or one is a
// branch ENI's, which may have been elsewhere meanwhile. A pod is not refused because that failed. A sandbox that asks again
// was not answered by an agent that was killed after it had stored the allocation; one that was has connections of its own.
func (a *Agent) forgetPast(ctx context.Context, al store.Allocation) {
	ctx, cancel := context.WithTimeout(ctx, forgetMost)
	defer cancel()
	a.past.mu.Lock()
	defer a.past.mu.Unlock()
	with := slices.DeleteFunc(al.Addresses(), func(address netip.Addr) bool { return a.past.forgotten[address] })
	if len(with) > 0 && !a.past.answered[al.Key] {
		a.forget(ctx, with)
	}
	for _, address := range al.Addresses() {
		delete(a.past.forgotten, address)
	}
	if a.past.answered == nil {
		a.past.answered = map[store.Key]bool{}
	}
	a.past.answered[al.Key] = true
}

func (a *Agent) forget(ctx context.Context, addresses []netip.Addr) bool {
	n, err := a.opt.Routing.Forget(ctx, addresses)
	if err != nil {
		a.metrics.failed("forgetConnections")
		a.opt.Log.Warn("old connections of pods' addresses are not forgotten; a new pod's packets may be taken for its predecessor's", "addresses", addresses, "error", err)
		return false
	}
	if n > 0 {
		a.opt.Log.Debug("old connections of pods' addresses are forgotten", "addresses", addresses, "connections", n)
	}
	return true
}
