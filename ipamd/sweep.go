package ipamd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
)

// Sweeper removes what sandboxes have left in the kernel, by the code that GC has.
type Sweeper interface {
	// Sweep removes what is marked for these sandboxes' interfaces, and what nobody can be using (links that were never
	// marked, rules without their link). It says what it removed.
	Sweep(ctx context.Context, over []store.Key) (removed []string, err error)
	// Unwire removes what the plugin of the node's former agent has wired for a pod that was taken over, and what it has left
	// of it.
	Unwire(ctx context.Context, pod store.Pod, ifName string, address netip.Addr) (removed []string, err error)
}

const (
	sweepEvery = time.Minute
	// sweepAfter is how long a pod must be over before what its sandboxes have is taken away without a DEL: kubelet and
	// runtime may have been away, and come back to do it themselves.
	sweepAfter   = 10 * time.Minute
	sweepTimeout = 30 * time.Second
)

// runSweep does GC's work for runtimes that never call it, containerd for one.
func (a *Agent) runSweep(ctx context.Context) {
	if a.opt.Sweeper == nil {
		return
	}
	since := map[store.Key]time.Time{}
	for ctx.Err() == nil {
		wait(ctx, jittered(sweepEvery))
		call, cancel := context.WithTimeout(ctx, sweepTimeout)
		err := a.sweepSandboxes(call, since)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("sweep")
			a.opt.Log.Warn("what sandboxes of ended pods have left in the kernel is looked for again", "error", err)
		}
	}
}

// sweepSandboxes takes away what is left of sandboxes that two sources have called over for sweepAfter: the watch of this node's
// pods, and the API server itself. What this agent knows nothing of is left alone: it may have lost its memory, and those
// pods run. since remembers when each one was first seen to be over.
func (a *Agent) sweepSandboxes(ctx context.Context, since map[store.Key]time.Time) error {
	if !a.opt.Kube.PodsSynced() {
		return nil
	}
	now := a.opt.Now()
	candidates := map[store.Key]store.Allocation{}
	for _, al := range a.store.View().Allocations {
		if a.seemsOver(al) && a.sinceAsked(al) >= inFlight {
			candidates[al.Key] = al
			if _, ok := since[al.Key]; !ok {
				since[al.Key] = now
			}
		}
	}
	maps.DeleteFunc(since, func(k store.Key, _ time.Time) bool { _, ok := candidates[k]; return !ok })
	var over []store.Key
	var errs []error
	for k, al := range candidates {
		if now.Sub(since[k]) < sweepAfter {
			continue
		}
		is, err := a.isOver(ctx, al)
		if err != nil {
			errs = append(errs, err)
		} else if is {
			over = append(over, k)
		}
	}
	if len(over) == 0 {
		return errors.Join(errs...)
	}
	slices.SortFunc(over, func(a, b store.Key) int { return slices.Compare([]byte(a.String()), []byte(b.String())) })
	removed, err := a.opt.Sweeper.Sweep(ctx, over)
	if len(removed) > 0 {
		a.metrics.dels.WithLabelValues("Swept").Inc()
		a.opt.Log.Warn("pods are over and nobody tore their sandboxes down: what they left in the kernel is removed", "sandboxes", fmt.Sprint(over), "removed", removed)
		a.changed.Fire()
		a.branch.Fire()
	}
	return errors.Join(append(errs, err)...)
}
