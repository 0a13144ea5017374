package ipamd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

const (
	stepTimeout = 90 * time.Second
	// Pauses between two sweeps for left-over ENIs, as long as they fail.
	sweepFirst = 10 * time.Second
	sweepMost  = 30 * time.Minute
)

// maxENIs is how many ENIs this instance may have.
func (a *Agent) maxENIs() int {
	t := a.limits()
	n := t.MaxInterfaces
	if cards := t.InterfacesPerNetworkCard; t.DefaultNetworkCard == 0 && len(cards) > 0 {
		n = min(n, cards[0])
	}
	if limit := a.opt.Config.MaxENI; limit > 0 {
		n = min(n, limit)
	}
	return n
}

// snapshot is what the pool decides from.
func (a *Agent) snapshot() pool.Snapshot {
	view := a.store.View()
	all := a.inventory.ENIs()
	a.mu.Lock()
	defer a.mu.Unlock()
	c := a.opt.Config
	s := pool.Snapshot{
		Targets: pool.Targets{
			WarmENIs: c.WarmENITarget, WarmPrefixes: c.WarmPrefixTarget, WarmIPs: c.WarmIPTarget, MinimumIPs: c.MinimumIPTarget,
			MaxENIs: a.maxENIs(), Places: max(0, a.limits().IPv4PerInterface-1), Prefixes: a.usesPrefixes(),
		},
		Attached: len(all), Waiting: int(a.waiting.Load()),
	}
	noPrefix := func(e enis.ENI) bool { return a.opt.Now().Before(a.noPrefix[e.SubnetID]) }
	for _, e := range all {
		s.NoPrefix = s.NoPrefix || e.Primary() && noPrefix(e) // where another ENI would be made
	}
	_, trunk := a.inventory.Trunk()
	s.KeepTrunkSlot = a.opt.Config.PodENI && a.supported() && !trunk
	for id := range a.joining {
		if !slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			s.Attached++
		}
	}
	held, cooling := make([]netip.Addr, 0, len(view.Allocations)+len(a.orphans)), make([]netip.Addr, 0, len(view.Cooling))
	for _, al := range view.Allocations {
		if al.Regular != nil {
			held = append(held, al.Regular.Address)
		}
	}
	held = slices.AppendSeq(held, maps.Keys(a.orphans))
	for _, c := range view.Cooling {
		cooling = append(cooling, c.Address)
	}
	for _, e := range all {
		if e.Trunk || e.Unmanaged {
			continue
		}
		p := pool.ENI{ID: e.ID, Primary: e.Primary(), Device: e.Device, Retiring: slices.Contains(view.Retiring, e.ID), NoPrefix: noPrefix(e)}
		for _, u := range e.Units() {
			p.Units = append(p.Units, pool.Unit{
				Prefix: u, InUse: countIn(held, u), Cooling: countIn(cooling, u),
				Leaving: slices.ContainsFunc(view.Leaving, func(l store.Leaving) bool { return l.Prefix == u }),
			})
		}
		// What a pod holds is there, also while a source shows fewer addresses.
		for _, al := range view.Allocations {
			if r := al.Regular; r != nil && r.ENIID == e.ID && !e.Owns(r.Address) {
				p.Units = append(p.Units, pool.Unit{Prefix: netip.PrefixFrom(r.Address, r.Address.BitLen()), InUse: 1})
			}
		}
		s.ENIs = append(s.ENIs, p)
	}
	return s
}

func countIn(addrs []netip.Addr, u netip.Prefix) (n int) {
	for _, a := range addrs {
		if u.Contains(a) {
			n++
		}
	}
	return n
}

// usesPrefixes says whether the node is to have prefixes: ENABLE_PREFIX_DELEGATION, on a Nitro instance.
func (a *Agent) usesPrefixes() bool {
	return a.opt.Config.PrefixDelegation && (a.limits().Hypervisor == "nitro" || a.limits().BareMetal)
}

// candidates are the addresses that may be given to a pod if the store holds them for nobody: those of the lowest device
// first, so that later ENIs fall empty first, and of a prefix that has pods before those of one that has none.
func (a *Agent) candidates() []store.Regular {
	all, view := a.inventory.ENIs(), a.store.View()
	busy := make(map[netip.Addr]bool, len(view.Allocations)+len(view.Cooling))
	for _, al := range view.Allocations {
		if al.Regular != nil {
			busy[al.Regular.Address] = true
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	maps.Copy(busy, a.orphans)
	var out []store.Regular
	for _, e := range all {
		placed, routed := a.routed[e.ID]
		if !e.Usable() || !routed {
			continue
		}
		units := e.Units()
		users := make(map[netip.Prefix]int, len(units))
		for addr := range busy {
			for _, p := range e.Prefixes {
				if p.Contains(addr) {
					users[p]++
				}
			}
		}
		slices.SortStableFunc(units, func(a, b netip.Prefix) int { return cmp.Compare(users[b], users[a]) })
		for _, u := range units {
			for addr := u.Addr(); u.Contains(addr); addr = addr.Next() {
				if placed.Holds(addr) && !busy[addr] {
					out = append(out, store.Regular{Address: addr, ENIID: e.ID, Device: e.Device, RouteTable: hostnet.Table(e.Device)})
				}
			}
		}
	}
	return out
}

// nextCooled is how long until the next address has cooled down; 0 where none cools.
func (a *Agent) nextCooled() time.Duration {
	var next time.Duration
	for _, c := range a.store.View().Cooling {
		if d := c.Until.Sub(a.opt.Now()) + time.Millisecond; next == 0 || d < next {
			next = max(d, time.Millisecond)
		}
	}
	return next
}

// runPool brings the pool to its target, one EC2 step after the other.
func (a *Agent) runPool(ctx context.Context) {
	var retry backoff
	var sweep sweeper
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C()}
		if !a.ready.Load() {
			channels = append(channels, a.opt.Kube.Changed.C())
		}
		if err := a.checkReady(); err != nil {
			a.opt.Log.Error("the CNI configuration can't be written; it is tried again", "error", err)
			wait(ctx, retry.next())
			continue
		}
		if !a.hasListed() {
			wait(ctx, 0, channels...)
			continue
		}
		did, err := a.poolStep(ctx)
		lost, joins := a.checkJoining(ctx)
		if err != nil || lost {
			sweep.done = false // something may have been left detached
		}
		var sweeps time.Duration
		if err == nil && !did {
			// Not before the first addresses are there: readiness does not wait for it.
			sweeps = a.sweep(ctx, &sweep)
		}
		a.notePool(ctx, err)
		switch {
		case err != nil:
			wait(ctx, retry.next())
		case did || lost:
			retry = 0
		default:
			wait(ctx, soonest(a.nextCooled(), joins, sweeps), channels...)
		}
	}
}

// sweeper remembers what the sweep for left-over ENIs has come to. The zero value is due.
type sweeper struct {
	done  bool
	next  time.Time
	pause time.Duration
}

// sweep deletes what this node left detached, unless that is done or not due yet. It returns how long until it is tried again,
// 0 for never. It runs between two steps, so that nothing of a step under way can be taken for a left-over.
func (a *Agent) sweep(ctx context.Context, s *sweeper) time.Duration {
	if s.done || a.opt.Config.LeakSweepOff {
		return 0
	}
	if left := s.next.Sub(a.opt.Now()); left > 0 {
		return left
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := a.provision.Sweep(call)
	if err == nil {
		*s = sweeper{done: true}
		return 0
	}
	s.pause = min(max(2*s.pause, sweepFirst), sweepMost)
	d := jittered(s.pause)
	s.next = a.opt.Now().Add(d)
	if ctx.Err() == nil {
		a.metrics.failed("sweep")
		a.opt.Log.Warn("left-over ENIs were not cleaned up; it is tried again", "error", err, "in", d)
	}
	return d
}

func (a *Agent) notePool(ctx context.Context, err error) {
	a.mu.Lock()
	a.poolErr = err
	a.mu.Unlock()
	if err == nil || ctx.Err() != nil {
		return
	}
	a.metrics.failed("pool")
	a.opt.Log.Warn("the pool of addresses can't be changed; it is tried again", "error", err)
	action, resource, denied := aws.Denied(err)
	switch {
	case denied:
		a.events.Node("EC2Denied", "the node's role may not call %s on %s: add it to the role's policy (AmazonEKS_CNI_Policy has it): %v", action, resource, err)
	case aws.IsDenied(err):
		a.events.Node("EC2Denied", "the node's role lacks a permission (AmazonEKS_CNI_Policy has it): %v", err)
	case aws.Code(err) != "" && !aws.IsThrottled(err):
		a.events.Node("AddressesNotAvailable", "no more addresses for pods: %v", err)
	}
}

// poolStep does one step; did is false when there is nothing to do.
func (a *Agent) poolStep(ctx context.Context) (did bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if did, err := a.resumeRetirement(ctx); did || err != nil {
		return did, err
	}
	if !a.limitsKnown() {
		return false, nil // what is attached stays as it is
	}
	steps := pool.Plan(a.snapshot())
	// Giving back never keeps pods from getting addresses, also where EC2 doesn't take them.
	if len(steps) == 0 || steps[0].Kind == pool.Unassign || steps[0].Kind == pool.Retire {
		if did, err := a.resumeLeaving(ctx); did || err != nil {
			return did, err
		}
	}
	if len(steps) == 0 {
		return false, nil
	}
	switch s := steps[0]; s.Kind {
	case pool.Assign:
		defer a.metrics.doing("increaseIPPool")()
		return true, a.assign(ctx, s)
	case pool.Attach:
		defer a.metrics.doing("increaseIPPool")()
		return true, a.attach(ctx, s)
	case pool.Unassign:
		defer a.metrics.doing("decreaseIPPool")()
		leaving, err := a.store.Leave(s.ENIID, s.Units)
		if err != nil || len(leaving) == 0 { // pods came meanwhile
			return true, err
		}
		return true, a.giveBack(ctx, s.ENIID, leaving)
	default:
		err := a.store.Retire(s.ENIID)
		if errors.Is(err, store.ErrInUse) {
			return true, nil // a pod came meanwhile
		}
		return true, err
	}
}

func (a *Agent) assign(ctx context.Context, s pool.Step) error {
	got, err := a.provision.Assign(ctx, s.ENIID, s.Count, s.Prefixes)
	if len(got) > 0 {
		a.opt.Log.Info("addresses assigned", "eni", s.ENIID, "units", len(got), "prefixes", s.Prefixes)
		// One of them may be on its way out still, as IMDS shows the time before: EC2 has just given it anew.
		if err := a.store.Left(got); err != nil {
			return err
		}
		for _, u := range got {
			delete(a.takenBack, u)
		}
		a.inventory.Learn(s.ENIID, got)
		a.changed.Fire()
	}
	if err == nil && len(got) == 0 {
		err = fmt.Errorf("assign %d addresses or prefixes to %s: EC2 gave none", s.Count, s.ENIID)
	}
	return a.withoutPrefixes(s.ENIID, err)
}

// noPrefixFor is how long single addresses are asked for in a subnet that had no free prefix.
const noPrefixFor = 10 * time.Minute

// withoutPrefixes takes a subnet without a free prefix for what it is: no failure, as single addresses serve meanwhile.
func (a *Agent) withoutPrefixes(eniID string, err error) error {
	if !enis.NoPrefix(err) {
		return err
	}
	for _, e := range a.inventory.ENIs() {
		if e.ID == eniID {
			a.mu.Lock()
			a.noPrefix[e.SubnetID] = a.opt.Now().Add(noPrefixFor)
			a.mu.Unlock()
			a.metrics.failed("prefix")
			a.opt.Log.Warn("the subnet has no free prefix: single addresses are used meanwhile", "subnet", e.SubnetID, "error", err)
			a.events.Node("NoFreePrefix", "subnet %s has no free /28 for a prefix (ENABLE_PREFIX_DELEGATION): single addresses are used meanwhile; reserve a range for prefixes (a subnet CIDR reservation), or use a larger subnet", e.SubnetID)
		}
	}
	return nil
}

func (a *Agent) attach(ctx context.Context, s pool.Step) error {
	all := a.inventory.ENIs()
	if len(all) == 0 || !all[0].Primary() {
		return errors.New("the primary ENI is not known yet")
	}
	var used []int
	for _, e := range all {
		if e.Card == 0 {
			used = append(used, e.Device)
		}
	}
	a.mu.Lock()
	for _, j := range a.joining {
		used = append(used, j.device)
	}
	a.mu.Unlock()
	id, device, err := a.provision.Attach(ctx, all[0], used, s.Count, s.Prefixes)
	if err != nil {
		return a.withoutPrefixes(all[0].ID, err)
	}
	a.join(id, device)
	a.links.Fire()
	if !a.await(ctx, a.opt.joinTimeout, func() bool { return a.isRouted(id) }) {
		a.opt.Log.Warn("an ENI was attached and its link or its metadata has not come yet", "eni", id)
	}
	return nil
}

func (a *Agent) isRouted(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, routed := a.routed[id]
	return routed
}

// await waits until ok, for at most d.
func (a *Agent) await(ctx context.Context, d time.Duration, ok func() bool) bool {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	for {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C()}
		if ok() {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		wait(ctx, 0, channels...)
	}
}
