package ipamd

import (
	"context"
	"errors"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/store"
)

const (
	refreshEvery   = time.Minute            // IMDS is read again without any event
	unsettledFirst = 100 * time.Millisecond // and sooner while something attached is not explained yet
	unsettledMost  = 5 * time.Second
	unsettledFor   = time.Minute // a link that stays unexplained is no ENI of ours
	callTimeout    = 20 * time.Second
	retryFirst     = 500 * time.Millisecond
	retryMost      = time.Minute
)

// jittered spreads what many nodes do at the same time.
func jittered(d time.Duration) time.Duration { return d*3/4 + rand.N(d/2+1) }

// backoff grows with each failure.
type backoff time.Duration

func (b *backoff) next() time.Duration {
	*b = min(max(2**b, backoff(retryFirst)), backoff(retryMost))
	return jittered(time.Duration(*b))
}

// wait sleeps until one of the channels is closed, d has passed (0: never) or ctx ends.
func wait(ctx context.Context, d time.Duration, channels ...<-chan struct{}) {
	var timer <-chan time.Time
	if d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		timer = t.C
	}
	for len(channels) < 3 {
		channels = append(channels, nil)
	}
	select {
	case <-ctx.Done():
	case <-timer:
	case <-channels[0]:
	case <-channels[1]:
	case <-channels[2]:
	}
}

// soonest is the shortest of the durations that are not 0; 0 where all are.
func soonest(all ...time.Duration) (d time.Duration) {
	for _, o := range all {
		if o > 0 && (d == 0 || o < d) {
			d = o
		}
	}
	return d
}

// runInventory keeps the view of the ENIs, their links and the host's routing.
func (a *Agent) runInventory(ctx context.Context) {
	quick, since := unsettledFirst, a.opt.Now()
	for ctx.Err() == nil {
		links := a.links.C()
		settled, err := a.refresh(ctx)
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("refresh")
			a.opt.Log.Warn("the view of this instance's ENIs is not complete; it is read again", "error", err)
			if aws.IsDenied(err) {
				a.events.Node("EC2Denied", "%v", err)
			}
		}
		if settled {
			quick, since = unsettledFirst, a.opt.Now()
			a.idle(ctx, links)
			continue
		}
		if a.opt.Now().Sub(since) > unsettledFor {
			quick = refreshEvery
		}
		select {
		case <-links:
			quick, since = unsettledFirst, a.opt.Now()
		default:
			wait(ctx, jittered(quick), links)
			quick = min(2*quick, max(unsettledMost, quick))
		}
	}
}

// idle waits for the next reason to read the sources again. Meanwhile it only puts the routing in place when a branch
// pod came or went.
func (a *Agent) idle(ctx context.Context, links <-chan struct{}) {
	until := time.NewTimer(jittered(refreshEvery))
	defer until.Stop()
	for {
		branch := a.branch.C()
		select {
		case <-ctx.Done():
			return
		case <-until.C:
			return
		case <-links:
			return
		case <-branch:
			call, cancel := context.WithTimeout(ctx, callTimeout)
			err := a.route(call)
			cancel()
			if err != nil {
				return // the full round says what is wrong, and tries again
			}
		}
	}
}

// refresh reads the sources and puts the routing in place.
func (a *Agent) refresh(ctx context.Context) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	settled, err = a.inventory.Refresh(ctx)
	rerr := a.route(ctx)
	return settled && rerr == nil, errors.Join(err, rerr)
}

// route puts the host's routing in place.
func (a *Agent) route(ctx context.Context) error {
	all := a.inventory.ENIs()
	if len(all) == 0 {
		return nil
	}
	d, left, err := a.desired(ctx, all)
	if err != nil {
		return err
	}
	ops, err := a.opt.Routing.Reconcile(ctx, d)
	for _, op := range ops {
		a.opt.Log.Info("host routing changed", "op", op.String())
	}
	if err != nil {
		return err
	}
	a.noteRouting(all, d, left)
	return a.mournOrphans()
}

// desired is the routing that the ENIs, the mode and what is left of branch pods ask for.
func (a *Agent) desired(ctx context.Context, all []enis.ENI) (d hostnet.Desired, branchesLeft bool, err error) {
	branchesLeft = slices.ContainsFunc(a.store.View().Allocations, func(al store.Allocation) bool { return al.Branch != nil })
	if !branchesLeft {
		vlans, err := a.opt.Links.VLANs(ctx)
		if err != nil {
			return d, false, err
		}
		branchesLeft = len(vlans) > 0
	}
	if d.LocalBehindPods, err = a.strictPods(ctx); err != nil {
		return d, false, err
	}
	for _, e := range all {
		if !e.Primary() && e.Usable() && len(e.Addresses) > 0 {
			d.ENIs = append(d.ENIs, hostnet.ENI{Device: e.Device, LinkIndex: e.LinkIndex, Primary: e.Addresses[0], Gateway: e.Gateway()})
		}
	}
	return d, branchesLeft, nil
}

func (a *Agent) noteRouting(all []enis.ENI, d hostnet.Desired, branchesLeft bool) {
	routed := map[string]bool{}
	for _, e := range all {
		in := slices.ContainsFunc(d.ENIs, func(r hostnet.ENI) bool { return r.LinkIndex == e.LinkIndex && r.Device == e.Device })
		routed[e.ID] = e.Primary() || in
	}
	a.mu.Lock()
	changed := !a.listed || a.branches != branchesLeft || a.strict != d.LocalBehindPods || len(routed) != len(a.routed)
	for id, on := range routed {
		changed = changed || a.routed[id] != on
	}
	a.routed, a.listed, a.branches, a.strict = routed, true, branchesLeft, d.LocalBehindPods
	for id := range a.joining {
		if _, shown := routed[id]; shown {
			delete(a.joining, id)
		}
	}
	a.mu.Unlock()
	if changed {
		a.changed.Fire()
	}
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
		}
	}
	return nil
}

func (a *Agent) ownerOf(addr netip.Addr) string {
	for _, e := range a.inventory.ENIs() {
		if slices.Contains(e.Addresses, addr) {
			return e.ID
		}
	}
	return ""
}

// runTrunk asks for the trunk and keeps the label.
func (a *Agent) runTrunk(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.inventory.Changed.C(), a.changed.C()}
		s, ok := a.trunkState()
		if !ok {
			wait(ctx, 0, channels...)
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := a.trunk.Reconcile(call, s)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("trunk")
			a.opt.Log.Warn("the trunk ENI's request or the node's label is tried again", "error", err)
			wait(ctx, retry.next())
			continue
		}
		retry = 0
		wait(ctx, 0, channels...)
	}
}

func (a *Agent) trunkState() (s podeni.TrunkState, ok bool) {
	a.mu.Lock()
	listed, branches := a.listed, a.branches
	a.mu.Unlock()
	s = podeni.TrunkState{Wanted: a.opt.Config.PodENI, Supported: a.supported(), BranchPods: branches}
	if t, ok := a.inventory.Trunk(); ok {
		s.Trunk = &t
	}
	p := a.snapshot()
	s.FreeSlot = p.Attached < p.MaxENIs
	return s, listed
}

// runReleases tells the ledger what is over.
func (a *Agent) runReleases(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.branch.C()}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := a.releaser.Reconcile(call)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("release")
			a.opt.Log.Warn("the release of a branch ENI is confirmed to the ledger later", "error", err)
			wait(ctx, retry.next())
			continue
		}
		retry = 0
		wait(ctx, 0, channels...)
	}
}

// checkReady writes the conflist and turns health to serving as soon as the first pod can be wired.
func (a *Agent) checkReady() error {
	if a.ready.Load() {
		return nil
	}
	if !a.hasListed() || !a.opt.Kube.PodsSynced() || len(a.candidates()) == 0 && len(a.store.View().Allocations) == 0 {
		return nil
	}
	written, err := install.WriteConflist(a.opt.Config)
	if err != nil {
		return err
	}
	a.ready.Store(true)
	a.changed.Fire()
	a.opt.Log.Info("the node agent can serve", "conflistWritten", written, "addresses", len(a.candidates()))
	return nil
}
