package ipamd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/recall"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// recallTimeout bounds what the start waits for the kernel's list of links.
const recallTimeout = 10 * time.Second

// findOrphans finds the addresses that are wired and of which the store knows nothing, once those are recalled of which two others
// say the same.
func (a *Agent) findOrphans() (err error) {
	if a.orphans, err = orphans(a.opt.Routing, a.store.View()); err != nil || len(a.orphans) == 0 || a.opt.ResultsDir == "" {
		return err
	}
	recalled, err := a.recall()
	if err != nil {
		a.opt.Log.Error("pods that this agent has forgotten can't be recalled; their addresses are left alone until they end", "error", err)
	}
	if recalled == 0 {
		return nil
	}
	a.opt.Log.Warn("pods that this agent had forgotten are known again, by their links' marks and the runtime's results", "pods", recalled)
	a.orphans, err = orphans(a.opt.Routing, a.store.View())
	return err
}

// recall takes in the sandboxes of which the kernel and the runtime say the same: whose link has which address, and which pod that is.
// One alone may be wrong: a result may be left over from a sandbox whose DEL failed, and a link does not name the pod.
func (a *Agent) recall() (recalled int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), recallTimeout)
	defer cancel()
	marked, err := a.opt.Links.Marked(ctx)
	if err != nil {
		return 0, err
	}
	var all []store.Allocation
	for _, addr := range slices.SortedFunc(maps.Keys(a.orphans), netip.Addr.Compare) {
		s := marked.Regular[addr]
		if s.ContainerID == "" {
			continue
		}
		al, err := recall.Allocation(a.opt.ResultsDir, store.Key(s), addr)
		switch {
		case errors.Is(err, recall.ErrNotCached):
		case err != nil:
			a.opt.Log.Warn("what the runtime has of a pod that this agent has forgotten can't be used; its address is left alone until it ends", "address", addr, "error", err)
		default:
			all = append(all, al)
		}
	}
	return a.store.Recall(all)
}

// orphans are the addresses that the host routes to pods which the store does not know: the store was lost. They must
// not be given to anyone while they are wired.
func orphans(r Routing, v store.View) (map[netip.Addr]bool, error) {
	wired, err := r.Pods()
	if err != nil {
		return nil, fmt.Errorf("find out which addresses are wired: %w", err)
	}
	out := map[netip.Addr]bool{}
	for _, addr := range wired {
		if config.IsEgress(addr) {
			continue // egress-cni keeps its own accounts
		}
		// Branch pods in standard mode are routed beside the regular ones.
		if !slices.ContainsFunc(v.Allocations, func(a store.Allocation) bool {
			return slices.Contains(a.Addresses(), addr)
		}) {
			out[addr] = true
		}
	}
	return out, nil
}

// mournOrphans lets addresses cool of which the routes are gone.
func (a *Agent) mournOrphans() error {
	a.mu.Lock()
	n := len(a.orphans)
	a.mu.Unlock()
	if n == 0 {
		return nil
	}
	wired, err := a.opt.Routing.Pods()
	if err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr := range a.orphans {
		if !slices.Contains(wired, addr) {
			if err := a.store.Cool(a.ownerOf(addr), addr); err != nil {
				return err
			}
			delete(a.orphans, addr)
			a.changed.Fire() // the pool waits for the end of its rest
		}
	}
	return nil
}

func (a *Agent) ownerOf(addr netip.Addr) string {
	for _, e := range a.inventory.ENIs() {
		if e.Owns(addr) {
			return e.ID
		}
	}
	return ""
}
