package ipamd

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/install"
)

const (
	refreshEvery   = time.Minute            // IMDS is read again without any event
	unsettledFirst = 100 * time.Millisecond // and sooner while something attached is not explained yet
	unsettledMost  = 5 * time.Second
	mendEvery      = 200 * time.Millisecond // at most this often the routing is mended because of events
	unsettledFor   = time.Minute            // a link that stays unexplained is no ENI of ours
	callTimeout    = 20 * time.Second
	sayTrunkEvery  = 10 * time.Minute // a missing trunk is said again, while nothing else happens
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

// wakeups are taken before what they announce is looked at, so that none is lost.
type wakeups struct{ links, branch, addresses, meddled <-chan struct{} }

func (a *Agent) wakeups() wakeups {
	return wakeups{a.links.C(), a.branch.C(), a.inventory.Changed.C(), a.meddled.C()}
}

// runInventory keeps the view of the ENIs, their links and the host's routing.
func (a *Agent) runInventory(ctx context.Context) {
	quick, since := unsettledFirst, a.opt.Now()
	var metadata metadataWatch
	for ctx.Err() == nil {
		w := a.wakeups()
		settled, err := a.refresh(ctx)
		a.noteView(err)
		metadata.saw(a, err)
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("refresh")
			a.opt.Log.Warn("the view of this instance's ENIs is not complete; it is read again", "error", err)
			if aws.IsDenied(err) {
				a.events.Node("EC2Denied", "%v", err)
			}
		}
		pause := refreshEvery
		switch {
		case settled:
			quick, since = unsettledFirst, a.opt.Now()
		case a.opt.Now().Sub(since) <= unsettledFor:
			pause, quick = quick, min(2*quick, unsettledMost)
		}
		a.noteUnexplained(pause != refreshEvery)
		if a.idle(ctx, w, jittered(pause)) {
			quick, since = unsettledFirst, a.opt.Now()
		}
	}
}

// idle waits for the next reason to read the sources again, at most for d; linked says that it was a link. Meanwhile it
// only puts the routing in place when a branch pod came or went, an ENI has other addresses, or somebody meddled with it.
func (a *Agent) idle(ctx context.Context, w wakeups, d time.Duration) (linked bool) {
	until := time.NewTimer(d)
	defer until.Stop()
	var last time.Time
	for {
		select {
		case <-ctx.Done():
			return false
		case <-until.C:
			return false
		case <-w.links:
			return true
		case <-w.branch:
		case <-w.addresses:
		case <-w.meddled:
			// Who takes away what is put back, again and again, must not keep the agent busy.
			if rest := mendEvery - time.Since(last); rest > 0 {
				wait(ctx, rest)
			}
		}
		links := w.links
		w, last = a.wakeups(), time.Now()
		w.links = links
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := a.route(call)
		cancel()
		if err != nil {
			return false // the full round says what is wrong, and tries again
		}
	}
}

// refresh reads the sources and puts the routing in place.
func (a *Agent) refresh(ctx context.Context) (settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	defer a.metrics.doing("nodeIPPoolReconcile")()
	a.metrics.reconciles.WithLabelValues("nodeIPPoolReconcile").Inc()
	settled, err = a.inventory.Refresh(ctx)
	rerr := a.route(ctx)
	return settled && rerr == nil, errors.Join(err, rerr)
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
			a.metrics.podENI.WithLabelValues("release").Inc()
			a.opt.Log.Warn("the release of a branch ENI is confirmed to the ledger later", "error", err)
			wait(ctx, retry.next())
			continue
		}
		retry = 0
		wait(ctx, 0, channels...)
	}
}

// groupsDenied says that the role may not tell what branch ENIs of the hosted control plane have.
func (a *Agent) groupsDenied(err error) {
	a.metrics.failed("groups")
	a.opt.Log.Warn("the security groups of branch ENIs can't be compared with the policies: the hosted control plane is trusted to have given all", "error", err)
	a.events.Node("EC2Denied", "the node's role may not call ec2:DescribeNetworkInterfaces: add it to the role's policy (%s has it); until then the security groups of branch ENIs are not compared with the policies: %v", a.rolePolicy(), err)
}

// checkReady writes the conflist and turns health to serving as soon as the first pod can be wired.
func (a *Agent) checkReady() error {
	if a.ready.Load() {
		return nil
	}
	if err := a.opt.Kube.PoliciesDenied(); err != nil && !a.opt.Kube.PoliciesKnown() {
		a.metrics.failed("policy")
		a.events.Node("PoliciesNotReadable", "ENABLE_POD_ENI is on and the node agent may not read SecurityGroupPolicies, so that it can't tell which pods need security groups of their own: it is not ready before; apply the ClusterRole aws-node of this version's manifest (config/aws-node): %v", err)
	}
	if !a.hasListed() || !a.opt.Kube.PodsSynced() || !a.opt.Kube.PoliciesKnown() || len(a.candidates()) == 0 && len(a.store.View().Allocations) == 0 {
		return nil
	}
	a.noteReady() // before the runtime sees a network and asks for its status
	written, err := install.WriteConflist(a.opt.Config)
	if err != nil {
		return err
	}
	a.ready.Store(true)
	a.changed.Fire()
	a.opt.Log.Info("the node agent can serve", "conflistWritten", written, "addresses", len(a.candidates()))
	return nil
}
