package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
)

const (
	// inFlight is how long what an executable was given is left alone: its ADD ends itself within 90 s, wired or undone.
	inFlight = 100 * time.Second
	// reclaimEvery is when it is looked again for something that is over and still in the kernel: its DEL is to come.
	reclaimEvery = time.Minute
)

// runReclaim ends the allocations of sandboxes whose DEL was not heard: the executable tears down without the agent.
func (a *Agent) runReclaim(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.changed.C(), a.branch.C()}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		again, err := a.reclaim(call)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("reclaim")
			a.opt.Log.Warn("whether the sandboxes of ended pods are gone can't be found out; it is tried again", "error", err)
			wait(ctx, retry.next())
			continue
		}
		retry = 0
		wait(ctx, again, channels...)
	}
}

// reclaim does what can be done now; again is when to look once more without an event, 0 for never.
//
// No single source ends an allocation. What is needed: the API server itself says that the pod is over (or a newer
// sandbox of the pod is wired in its place), nothing in the kernel is marked with what the sandbox holds, no route leads
// to it, and no ADD can be under way.
func (a *Agent) reclaim(ctx context.Context) (again time.Duration, err error) {
	if !a.opt.Kube.PodsSynced() {
		return 0, nil
	}
	soon := func(d time.Duration) {
		if again == 0 || d < again {
			again = d
		}
	}
	var errs []error
	all := a.store.View().Allocations
	for _, al := range all {
		by, superseded := successor(all, al)
		if !superseded && !a.seemsOver(al) {
			continue
		}
		if left := inFlight - a.sinceAsked(al); left > 0 {
			soon(left)
			continue
		}
		freed, err := a.reclaimOne(ctx, al.Key, by)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s, sandbox %s: %w", al.Pod, al.Key, err))
		} else if !freed {
			soon(jittered(reclaimEvery))
		}
	}
	return again, errors.Join(errs...)
}

// successor is a newer sandbox of the same pod with a regular address. A branch pod's sandboxes share one VLAN link, so
// that its older ones can't be told apart in the kernel: they end with the pod.
func successor(all []store.Allocation, al store.Allocation) (by *store.Regular, ok bool) {
	if al.Regular == nil || al.Pod.UID == "" {
		return nil, false
	}
	i := slices.IndexFunc(all, func(o store.Allocation) bool {
		return o.Regular != nil && o.Pod.UID == al.Pod.UID && o.IfName == al.IfName && o.Since.After(al.Since)
	})
	if i < 0 {
		return nil, false
	}
	return all[i].Regular, true
}

// seemsOver is what the watch says of the pod; it may be behind.
func (a *Agent) seemsOver(al store.Allocation) bool {
	p, ok := a.opt.Kube.Pod(al.Pod.Namespace, al.Pod.Name)
	return !ok || !isOf(p, al) || p.Ended
}

// sinceAsked is how long ago an executable was last told of the allocation.
func (a *Agent) sinceAsked(al store.Allocation) time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if at, ok := a.asked[al.Key]; ok {
		return a.opt.Now().Sub(at)
	}
	if d := a.opt.Now().Sub(al.Since); d >= 0 {
		return d
	}
	return a.opt.Now().Sub(a.started) // the clock was set back since
}

func (a *Agent) noteAsked(k store.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.asked[k] = a.opt.Now()
}

func (a *Agent) forgetAsked(k store.Key) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.asked, k)
}

func (a *Agent) reclaimOne(ctx context.Context, k store.Key, by *store.Regular) (freed bool, err error) {
	unlock, err := a.sandboxes.lock(ctx, k.ContainerID)
	if err != nil {
		return false, err
	}
	defer unlock()
	al, ok := a.store.Get(k)
	if !ok {
		return true, nil
	}
	if a.sinceAsked(al) < inFlight {
		return false, nil // asked for while the lock was waited for
	}
	here, err := a.kernel(ctx)
	if err != nil || here.holds(al) {
		return false, err
	}
	if by == nil || !here.wired(by) {
		over, err := a.isOver(ctx, al)
		if err != nil || !over {
			return false, err
		}
	}
	_, freed, err = a.free(ctx, k)
	if err != nil || !freed {
		return freed, err
	}
	a.ended(al)
	a.metrics.dels.WithLabelValues("Reclaimed").Inc()
	a.opt.Log.Info("a sandbox is gone and its DEL was not heard: what it held is free", "pod", al.Pod.String(), "uid", al.Pod.UID, "sandbox", k.ContainerID)
	return true, nil
}

// isOver asks the API server itself.
func (a *Agent) isOver(ctx context.Context, al store.Allocation) (bool, error) {
	p, err := a.opt.Kube.LivePod(ctx, al.Pod.Namespace, al.Pod.Name)
	if errors.Is(err, kube.ErrNoPod) {
		return true, nil
	}
	return err == nil && (!isOf(p, al) || p.Ended), err
}

// traces are what the kernel shows of pods.
type traces struct {
	links  enis.Marked
	routed map[string]bool // addresses in the pods' table
}

func (a *Agent) kernel(ctx context.Context) (t traces, err error) {
	if t.links, err = a.opt.Links.Marked(ctx); err != nil {
		return t, err
	}
	routes, err := a.opt.Routing.Pods()
	if err != nil {
		return t, fmt.Errorf("find out which addresses are wired: %w", err)
	}
	t.routed = map[string]bool{}
	for _, addr := range routes {
		t.routed[addr.String()] = true
	}
	return t, nil
}

// holds says whether anything of the allocation is left.
func (t traces) holds(al store.Allocation) bool {
	if al.Regular != nil {
		return slices.ContainsFunc(al.Addresses(), func(a netip.Addr) bool { return t.links.Addresses[a] || t.routed[a.String()] })
	}
	return t.links.VLANs[al.Branch.VLAN] || t.links.Addresses[al.Branch.Address]
}

// wired says whether a regular pod's address is in use.
func (t traces) wired(r *store.Regular) bool {
	return t.links.Addresses[r.Address] && t.routed[r.Address.String()]
}
