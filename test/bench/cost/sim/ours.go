package sim

import (
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/pool"
)

// As in ipamd.
const (
	subnetsLate     = 10 * time.Minute
	subnetsEvery    = 30 * time.Minute
	addressFor      = 40 * time.Second
	unsettledFirst  = 100 * time.Millisecond
	unsettledMost   = 5 * time.Second
	firstDelete     = time.Second
	beforeDelete    = 2 * time.Second
	mostDeletePause = 5 * time.Second
	routed          = 20 * time.Millisecond // new addresses are put into the host's routing
)

// Ours is ipamd's pool.
type Ours struct {
	n        *Node
	changed  Signal
	waiting  int
	asked    time.Duration // when subnets were described
	patience pool.Patience
}

// NewOurs begins to run it, with BRANCHLINE_KEEP_SURPLUS not set.
func NewOurs(n *Node) Agent { return newOurs(n, 10*n.CoolDown) }

// NewOursKeepingNothing is the same with BRANCHLINE_KEEP_SURPLUS=0.
func NewOursKeepingNothing(n *Node) Agent { return newOurs(n, 0) }

func newOurs(n *Node, keepSurplus time.Duration) Agent {
	o := &Ours{n: n, patience: pool.NewPatience(n.CoolDown, keepSurplus)}
	n.Go(o.pool)
	n.Go(o.subnets)
	return o
}

// snapshot is what the pool decides from.
func (o *Ours) snapshot() pool.Snapshot {
	at := placement.Decide(placement.Input{
		Primary: placement.Place{SubnetID: "subnet-1"}, Discovery: true, Subnets: []placement.Subnet{{ID: "subnet-1", Free: 8000}},
		Prefixes: o.n.Targets.Prefixes,
	})
	s := pool.Snapshot{Targets: o.n.Targets, Waiting: o.waiting, NoENI: at.Reason != placement.None, Attached: len(o.n.ENIs)}
	for _, e := range o.n.ENIs {
		if !e.Usable {
			continue
		}
		p := pool.ENI{ID: e.ID, Primary: e.Device == 0, Device: e.Device, Retiring: e.leaving, Draining: !at.Serves("subnet-1", e.Device == 0)}
		for _, u := range e.Units {
			p.Units = append(p.Units, pool.Unit{Prefix: u.Prefix, InUse: u.InUse, Cooling: u.cooling(o.n.now)})
		}
		s.ENIs = append(s.ENIs, p)
	}
	return s
}

// pool does one step after the other, and waits for events between them.
func (o *Ours) pool(p *Process) {
	for {
		now := o.snapshot()
		next := o.patience.Hold(time.Time{}.Add(o.n.now), &now)
		steps := pool.Plan(now)
		if len(steps) == 0 {
			p.Wait(&o.changed, soonest(next, o.nextCooled()))
			continue
		}
		switch s := steps[0]; s.Kind {
		case pool.Assign:
			o.n.call(p, assign)
			p.Sleep(routed)
			e := o.n.eni(s.ENIID)
			e.Units = append(e.Units, o.n.newUnits(s.Count, s.Prefixes)...)
		case pool.Attach:
			o.attach(p, s)
		case pool.Unassign:
			e := o.n.eni(s.ENIID)
			e.Units = slices.DeleteFunc(e.Units, func(u *Unit) bool { return slices.Contains(s.Units, u.Prefix) })
			o.n.call(p, unassign)
		case pool.Retire:
			o.retire(p, o.n.eni(s.ENIID))
		}
		o.changed.Fire(o.n.Clock)
	}
}

func (o *Ours) attach(p *Process, s pool.Step) {
	if o.n.now-o.asked >= subnetsLate {
		o.describeSubnets(p)
	}
	o.n.call(p, createENI)
	o.n.call(p, attachENI)
	e, shown := o.n.attach(s.Count, s.Prefixes)
	o.n.call(p, modifyENI)
	// The link's event has the sources read again, with growing pauses until the metadata service shows the ENI.
	for pause := unsettledFirst; o.n.now < shown; pause = min(2*pause, unsettledMost) {
		p.Sleep(pause)
	}
	o.n.call(p, describeENIs) // what kind of ENI it is
	p.Sleep(routed)
	e.Usable = true
}

func (o *Ours) retire(p *Process, e *ENI) {
	e.leaving = true
	o.n.call(p, describeENIs)
	o.n.call(p, detachENI)
	detached := o.n.now + goneAfter
	p.Sleep(beforeDelete)
	for pause := firstDelete; ; pause = min(2*pause, mostDeletePause) {
		o.n.call(p, deleteENI)
		if o.n.now >= detached {
			break
		}
		p.Sleep(pause)
	}
	o.n.remove(e)
}

func (o *Ours) describeSubnets(p *Process) {
	o.n.call(p, describeSubnets)
	o.asked = o.n.now
}

func (o *Ours) subnets(p *Process) {
	for {
		o.describeSubnets(p)
		p.Sleep(subnetsEvery)
	}
}

func (o *Ours) nextCooled() (next time.Duration) {
	for _, e := range o.n.ENIs {
		for _, u := range e.Units {
			for _, until := range u.Cooling {
				if d := until - o.n.now; d > 0 && (next == 0 || d < next) {
					next = d
				}
			}
		}
	}
	return next
}

// Add waits for an address.
func (o *Ours) Add(p *Process) *Unit {
	u := o.n.take()
	if u == nil {
		o.waiting++
		o.changed.Fire(o.n.Clock)
		for deadline := o.n.now + addressFor; u == nil && o.n.now < deadline; u = o.n.take() {
			p.Wait(&o.changed, soonest(o.nextCooled(), deadline-o.n.now))
		}
		o.waiting--
	}
	o.changed.Fire(o.n.Clock)
	return u
}

// Del lets the address rest.
func (o *Ours) Del(u *Unit) {
	o.n.release(u)
	o.changed.Fire(o.n.Clock)
}

func soonest(a, b time.Duration) time.Duration {
	if a == 0 || b > 0 && b < a {
		return b
	}
	return a
}
