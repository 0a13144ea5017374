package ipamd

import (
	"context"
	"time"

	"github.com/branchline-cni/branchline/ipamd/podeni"
)

// runTrunk asks for the trunk and keeps the label.
func (a *Agent) runTrunk(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.inventory.Changed.C(), a.changed.C()}
		s, late, ok := a.trunkState()
		if !ok {
			wait(ctx, 0, channels...)
			continue
		}
		call, cancel := context.WithTimeout(ctx, callTimeout)
		err := a.trunk.Reconcile(call, s)
		cancel()
		if err != nil && ctx.Err() == nil {
			a.metrics.failed("trunk")
			a.metrics.podENI.WithLabelValues("trunk").Inc()
			a.opt.Log.Warn("the trunk ENI's request or the node's label is tried again", "error", err)
			wait(ctx, retry.next())
			continue
		}
		retry = 0
		wait(ctx, late, channels...)
	}
}

// trunkState is what the trunk depends on. late is when to look again whether it is late; 0: only when something changes.
func (a *Agent) trunkState() (s podeni.TrunkState, late time.Duration, ok bool) {
	a.mu.Lock()
	listed, branches := a.listed, a.branches
	a.mu.Unlock()
	s = podeni.TrunkState{Wanted: a.opt.Config.PodENI, Supported: a.supported(), BranchPods: branches, Custom: a.opt.Config.CustomNetworking}
	s.ENIConfig = a.place().config
	if t, ok := a.inventory.Trunk(); ok {
		s.Trunk = &t
	}
	p := a.snapshot()
	s.FreeSlot = p.Attached < p.MaxENIs
	a.mu.Lock()
	defer a.mu.Unlock()
	switch now := a.opt.Now(); {
	case !s.Wanted || !s.Supported || s.Trunk != nil:
		a.trunkless = time.Time{}
	case a.trunkless.IsZero():
		a.trunkless, late = now, podeni.TrunkLate
	case now.Sub(a.trunkless) < podeni.TrunkLate:
		late = podeni.TrunkLate - now.Sub(a.trunkless)
	default:
		s.Late, late = true, sayTrunkEvery
	}
	return s, late, listed
}
