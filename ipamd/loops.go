package ipamd

import (
	"context"
	"errors"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/config"
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

// route puts the host's routing in place.
func (a *Agent) route(ctx context.Context) (err error) {
	defer func() { a.noteRouteError(err) }()
	all := a.inventory.ENIs()
	if len(all) == 0 {
		return nil
	}
	d, left, err := a.desired(ctx, all)
	if err != nil {
		return err
	}
	r, err := a.opt.Routing.Reconcile(ctx, d)
	if len(r.Ops) > 0 {
		a.metrics.reconciles.WithLabelValues("hostNetwork").Inc()
	}
	for _, op := range r.Ops {
		a.opt.Log.Info("host routing changed", "op", op.String())
	}
	if err != nil {
		return err
	}
	a.sayMissing(r)
	a.noteRouting(all, d, left, r)
	if r.NAT == nil && (len(d.NAT.VPC) > 0 || !d.NAT.Source && !d.NAT.NodePort) {
		a.removeFormerNAT(ctx)
	}
	return a.mournOrphans()
}

// removeFormerNAT removes the rules of the agent that this node had before. What fails is tried with the next change.
func (a *Agent) removeFormerNAT(ctx context.Context) {
	if a.formerNATGone || a.opt.RemoveFormerNAT == nil {
		return
	}
	removed, left, err := a.opt.RemoveFormerNAT(ctx)
	if len(removed) > 0 {
		a.opt.Log.Info("rules of another agent are removed from netfilter", "removed", removed)
	}
	if err != nil {
		a.metrics.failed("takeOver")
		a.opt.Log.Warn("rules of another agent in netfilter can't be removed; they do no harm beside this agent's", "error", err)
		return
	}
	if len(left) > 0 {
		a.opt.Log.Warn("rules of another agent are left in netfilter; they do no harm beside this agent's", "left", left)
		a.events.Node("FormerNATLeft", "rules of another node agent are left in netfilter: %s; they do no harm beside this agent's, and go with the instance", strings.Join(left, "; "))
	}
	a.formerNATGone = true
}

// sayMissing tells people once what this host can't do, though the rest works.
func (a *Agent) sayMissing(r hostnet.Result) {
	say := func(was *string, err error, reason, consequence string) {
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != *was && err != nil {
			a.metrics.failed("routing")
			a.opt.Log.Error(consequence, "error", err)
			a.events.Node(reason, "%s: %v", consequence, err)
		}
		*was = now
	}
	say(&a.unmarked, r.Marks, "NFTablesMissing", "packets can't be marked by their ENI; pods on secondary ENIs get a routing rule each, which slows the node down as they become more")
	say(&a.untranslated, r.NAT, "SourceNATMissing", "source NAT and the answers of NodePort are not in place as configured; pods may not reach what is outside the VPC")
	say(&a.kubeletAway, r.Kubelet, "KubeletNotLocal", "BRANCHLINE_KUBELET_LOCAL is on and the kubelet's connections to branch pods still pass the pods' security groups")
}

// desired is the routing that the ENIs, the mode and what is left of branch pods ask for.
func (a *Agent) desired(ctx context.Context, all []enis.ENI) (d hostnet.Desired, branchesLeft bool, err error) {
	view := a.store.View()
	branchesLeft = slices.ContainsFunc(view.Allocations, func(al store.Allocation) bool { return al.Branch != nil })
	if !branchesLeft {
		vlans, err := a.opt.Links.VLANs(ctx)
		if err != nil {
			return d, false, err
		}
		branchesLeft = len(vlans) > 0
	}
	c := a.opt.Config
	d = hostnet.Desired{
		IPv6: c.IPv6, NodeLocal: c.NodeLocal, KubeletLocal: c.KubeletLocal, VethPrefix: c.VethPrefix,
		NAT: natOf(c, all), External: c.ExternalServices.Prefixes(), Egress: c.EgressSubnet(),
	}
	if d.LocalBehindPods, err = a.strictPods(ctx); err != nil {
		return d, false, err
	}
	held := map[string][]netip.Prefix{}
	for _, al := range view.Allocations {
		if r := al.Regular; r != nil && r.Settled() {
			held[r.ENIID] = append(held[r.ENIID], netip.PrefixFrom(r.Address, r.Address.BitLen()))
			if !slices.Contains(d.InUse, r.Device) {
				d.InUse = append(d.InUse, r.Device)
			}
		}
	}
	for _, e := range all {
		if !e.Usable() || len(e.Addresses)+len(e.Prefixes) == 0 {
			continue
		}
		// What pods hold is routed as they hold it, also while a source shows fewer addresses.
		prefixes := e.Units()
		for _, h := range held[e.ID] {
			if !e.Owns(h.Addr()) {
				prefixes = append(prefixes, h)
			}
		}
		d.ENIs = append(d.ENIs, hostnet.ENI{
			Device: e.Device, LinkIndex: e.LinkIndex, Primary: e.PrimaryAddress(), Gateway: e.Gateway(), Prefixes: prefixes,
		})
	}
	return d, branchesLeft, nil
}

// natOf is what the configuration asks for of source NAT and NodePort, with the VPC as the primary ENI shows it.
func natOf(c *config.Config, all []enis.ENI) hostnet.NAT {
	n := hostnet.NAT{Source: !c.ExternalSNAT, Excluded: c.ExcludeSNAT.Prefixes(), NodePort: c.NodePort, ConnMark: c.ConnMark}
	switch c.RandomizeSNAT {
	case "hashrandom":
		n.Ports = hostnet.PortsHashed
	case "none":
		n.Ports = hostnet.PortsKept
	}
	if at := slices.IndexFunc(all, enis.ENI.Primary); at >= 0 {
		n.VPC = all[at].VPC
	}
	return n
}

func (a *Agent) noteRouting(all []enis.ENI, d hostnet.Desired, branchesLeft bool, r hostnet.Result) {
	routed := map[string]hostnet.ENI{}
	for _, e := range all {
		at := slices.IndexFunc(d.ENIs, func(r hostnet.ENI) bool { return r.LinkIndex == e.LinkIndex && r.Device == e.Device })
		if at >= 0 {
			routed[e.ID] = d.ENIs[at]
		}
	}
	a.mu.Lock()
	changed := !a.listed || a.branches != branchesLeft || a.strict != d.LocalBehindPods || a.marked != (r.Marks == nil) ||
		!maps.EqualFunc(routed, a.routed, func(a, b hostnet.ENI) bool { return slices.Equal(a.Prefixes, b.Prefixes) })
	a.routed, a.listed, a.branches, a.strict, a.marked = routed, true, branchesLeft, d.LocalBehindPods, r.Marks == nil
	for id := range a.joining {
		if slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			delete(a.joining, id)
		}
	}
	a.mu.Unlock()
	if changed {
		a.changed.Fire()
	}
}

// routeTable is the table that a rule of the pod's own has to name: 0, no rule, where the pod's packets are marked by their ENI.
func (a *Agent) routeTable(r *store.Regular) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.marked {
		return 0
	}
	return uint32(r.RouteTable)
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
		if e.Owns(addr) {
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
