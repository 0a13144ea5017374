package ipamd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

const (
	stepTimeout = 90 * time.Second
	// Pauses between two sweeps for left-over ENIs, as long as they fail.
	sweepFirst = 10 * time.Second
	sweepMost  = 30 * time.Minute
	// describedLate is how late EC2's descriptions are as a rule at most: one sweep is so long after what may have left something.
	describedLate = time.Minute
	// sweepAgain is how long after that comes the next, for what is shown later still, or was left in a way nobody thought of.
	sweepAgain = time.Hour
)

// runPool brings the pool to its target, one EC2 step after the other.
func (a *Agent) runPool(ctx context.Context) {
	var retry backoff
	var sweep sweeper
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C(), a.opt.Kube.NodeChanged.C()}
		if !a.ready.Load() {
			channels[2] = a.opt.Kube.Changed.C() // which fires with the other, too
		}
		if err := a.checkReady(); err != nil {
			a.conflistNotWritten(err)
			wait(ctx, retry.next())
			continue
		}
		if !a.hasListed() {
			wait(ctx, 0, channels...)
			continue
		}
		a.stepping(a.opt.Now())
		did, err := a.poolStep(ctx)
		a.stepping(time.Time{})
		lost, joins := a.checkJoining(ctx)
		if err != nil || lost {
			sweep = sweeper{since: a.opt.Now()} // something may have been left detached
		}
		var sweeps time.Duration
		if err == nil && !did {
			// Not before the first addresses are there: readiness does not wait for it.
			sweeps = a.sweep(ctx, &sweep)
		}
		a.notePool(ctx, err)
		_, back := err.(*backError) // alone: where growing failed, too, it is part of another
		switch {
		case back:
			wait(ctx, soonest(a.nextBack(), joins, a.heldFor), channels...)
		case err != nil:
			wait(ctx, retry.next())
		case did || lost:
			retry = 0
		default:
			wait(ctx, soonest(a.nextCooled(), joins, sweeps, a.scarceUntil(), a.heldFor, a.nextAsked(), a.nextBack()), channels...)
		}
	}
}

// sweeper remembers what the sweep for left-over ENIs has come to. The zero value is due.
type sweeper struct {
	since time.Time // when something may have been left last; zero: before this run
	next  time.Time
	pause time.Duration
}

// sweep deletes what this node left detached, unless it is not due yet. It returns how long until it is, 0 for never. It runs
// between two steps, so that nothing of a step under way can be taken for a left-over.
func (a *Agent) sweep(ctx context.Context, s *sweeper) time.Duration {
	if a.opt.Config.LeakSweepOff || a.opt.Config.Frozen() || a.opt.Config.IPv6 { // which makes no ENIs
		return 0
	}
	if left := s.next.Sub(a.opt.Now()); left > 0 {
		return left
	}
	if s.since.IsZero() {
		s.since = a.opt.Now()
	}
	call, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := a.provision.Sweep(call)
	if err == nil {
		left := describedLate - a.opt.Now().Sub(s.since)
		if left <= 0 {
			left = jittered(sweepAgain)
		}
		*s = sweeper{since: s.since, next: a.opt.Now().Add(left)}
		return left
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
	if _, back := err.(*backError); back {
		a.poolErr = nil // no pod waits for it
	}
	a.mu.Unlock()
	if err == nil || ctx.Err() != nil {
		return
	}
	a.metrics.failed("pool")
	a.opt.Log.Warn("the pool of addresses can't be changed; it is tried again", "error", err)
	if action, resource, ok := aws.Denied(err); ok {
		a.events.Node("EC2Denied", "the node's role may not call %s on %s: add it to the role's policy (%s has it): %v", action, resource, a.rolePolicy(), err)
		return
	}
	a.sayEC2(err)
}

// poolStep does one step; did is false when there is nothing to do.
func (a *Agent) poolStep(ctx context.Context) (did bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, stepTimeout)
	defer cancel()
	if a.opt.Config.Frozen() {
		return false, nil
	}
	if a.opt.Config.IPv6 {
		return a.ipv6Step(ctx)
	}
	if !a.limitsKnown() {
		return a.resumeRetirement(ctx) // what is attached else stays as it is
	}
	pools := a.cardPools()
	if first := pools[0].at; first.Reason == placement.None && !a.subnetsTried() {
		return a.resumeRetirement(ctx) // tags may say that it is not the first ENI that is to have addresses
	}
	grow, shrink := a.decide(pools)
	// Giving back never keeps pods from getting addresses, also where EC2 doesn't take them. Where they get none it may help.
	if len(grow) > 0 {
		did, err := a.grow(ctx, grow)
		if did && err == nil {
			return true, nil
		}
		if err != nil {
			_, rerr := a.resumeRetirement(ctx)
			return did, errors.Join(err, rerr)
		}
		shrink = nil // EC2's answer is waited for
	}
	if a.nextBack() > 0 {
		return false, nil
	}
	did, err = a.shrink(ctx, shrink)
	if err != nil {
		a.back.next = a.opt.Now().Add(a.back.pause.next())
		return false, &backError{err}
	}
	a.back.pause = 0
	return did, nil
}

// backError is of what did not go back. Whatever its cause, the pool grows meanwhile.
type backError struct{ error }

func (e *backError) Unwrap() error { return e.error }

// shrink goes on with what is on its way out, or gives back what is too much.
func (a *Agent) shrink(ctx context.Context, steps []cardStep) (did bool, err error) {
	if did, err := a.resumeRetirement(ctx); did || err != nil {
		return did, err
	}
	if did, err := a.resumeLeaving(ctx); did || err != nil {
		return did, err
	}
	if len(steps) == 0 {
		return false, nil
	}
	return a.giveUp(ctx, steps[0].Step)
}

// nextBack is how long until what did not go back is tried again; 0 where nothing is.
func (a *Agent) nextBack() time.Duration {
	return max(0, a.back.next.Sub(a.opt.Now()))
}

// cardStep is a step on one network card.
type cardStep struct {
	pool.Step
	card int
	at   placed
}

// decide plans each network card's next step. Cards that have too little come before those that have too much.
func (a *Agent) decide(pools []cardPool) (grow, shrink []cardStep) {
	a.heldFor = 0
	var attach []wanted
	room := pools[0].room // each card's plan reckons with what the others have, not with what they are about to get
	for _, p := range pools {
		patience := a.patience[p.card]
		if patience == nil {
			fresh := pool.NewPatience(a.opt.Config.CoolDown, a.opt.Config.KeepSurplus)
			patience = &fresh
			a.patience[p.card] = patience
		}
		a.heldFor = soonest(a.heldFor, patience.Hold(a.opt.Now(), &p.Snapshot))
		steps := pool.Plan(p.Snapshot)
		a.sayPlace(p)
		if len(steps) == 0 {
			continue
		}
		s := cardStep{steps[0], p.card, p.at}
		if s.Kind == pool.Unassign || s.Kind == pool.Retire {
			shrink = append(shrink, s)
		} else if p.gathers > 0 {
			a.heldFor = soonest(a.heldFor, p.gathers)
		} else if s.Kind == pool.Attach {
			attach = append(attach, wanted{s, a.urgency(p)})
		} else {
			grow = append(grow, s)
		}
	}
	slices.SortStableFunc(attach, func(a, b wanted) int { return cmp.Compare(b.urgency, a.urgency) })
	for _, w := range attach[:min(len(attach), max(0, room))] {
		grow = append(grow, w.cardStep)
	}
	return grow, shrink
}

// wanted is an ENI that a card wants. Where there is not room for all, the more urgent go first.
type wanted struct {
	cardStep
	urgency int
}

// urgency puts cards for which pods wait before the others, and among either those whose ENI did not fail the last time.
func (a *Agent) urgency(p cardPool) (n int) {
	if p.Waiting > 0 {
		n += 2
	}
	if !a.notAttached[p.card] {
		n++
	}
	return n
}

// cardsAtOnce bounds the calls that are made at the same time for several network cards.
const cardsAtOnce = 8

// grow does the steps, of several cards at the same time: a pod that waits for all of them waits once.
func (a *Agent) grow(ctx context.Context, steps []cardStep) (did bool, err error) {
	defer a.metrics.doing("increaseIPPool")()
	if len(steps) == 1 {
		did, err = a.growOne(ctx, steps[0])
		a.attached(steps[0], did, err)
		return did, err
	}
	var all errgroup.Group
	all.SetLimit(cardsAtOnce)
	dids, errs := make([]bool, len(steps)), make([]error, len(steps))
	for i, s := range steps {
		all.Go(func() error {
			dids[i], errs[i] = a.growOne(ctx, s)
			return nil
		})
	}
	_ = all.Wait() // each has its own error
	for i, s := range steps {
		a.attached(s, dids[i], errs[i])
		errs[i] = onCard(s.card, true, errs[i])
	}
	return slices.Contains(dids, true), errors.Join(errs...)
}

func (a *Agent) growOne(ctx context.Context, s cardStep) (did bool, err error) {
	if s.Kind == pool.Assign {
		return true, a.assign(ctx, s.Step)
	}
	if a.unexplained.Load() || s.card == 0 && !a.subnetsAsked(s.at) {
		return false, nil // the answer, or the metadata service's, wakes the pool
	}
	return true, a.attach(ctx, s)
}

// attached notes what has come of a step.
func (a *Agent) attached(s cardStep, did bool, err error) {
	if s.Kind == pool.Attach {
		a.notAttached[s.card] = !did || err != nil
	}
}

// giveUp does a step that gives something back.
func (a *Agent) giveUp(ctx context.Context, s pool.Step) (did bool, err error) {
	if s.Kind == pool.Retire {
		err := a.store.Retire(s.ENIID)
		if errors.Is(err, store.ErrInUse) {
			return false, nil // a pod came meanwhile, which has woken the pool
		}
		return true, err
	}
	defer a.metrics.doing("decreaseIPPool")()
	leaving, err := a.store.Leave(s.ENIID, s.Units)
	if err != nil || len(leaving) == 0 { // pods came meanwhile, which have woken the pool
		return err != nil, err
	}
	return true, a.giveBack(ctx, s.ENIID, leaving, true)
}

func (a *Agent) assign(ctx context.Context, s pool.Step) error {
	got, err := a.provision.Assign(ctx, s.ENIID, s.Count, s.Prefixes)
	if len(got) > 0 {
		a.opt.Log.Info("addresses assigned", "eni", s.ENIID, "units", len(got), "prefixes", s.Prefixes)
		// One of them may be on its way out still, as IMDS shows the time before: EC2 has just given it anew.
		if err := a.store.Left(s.ENIID, got); err != nil {
			return err
		}
		a.mu.Lock()
		for _, u := range got {
			delete(a.takenBack, store.Leaving{Prefix: u, ENIID: s.ENIID})
		}
		a.mu.Unlock()
		a.inventory.Learn(s.ENIID, got)
		a.changed.Fire()
	}
	if err == nil && len(got) == 0 {
		err = fmt.Errorf("assign %d addresses or prefixes to %s: EC2 gave none: %w", s.Count, s.ENIID, enis.ErrNotUnderstood)
	}
	for _, e := range a.inventory.ENIs() {
		if e.ID == s.ENIID {
			return a.scarce(e.SubnetID, err)
		}
	}
	return err
}

func (a *Agent) attach(ctx context.Context, s cardStep) error {
	all := a.inventory.ENIs()
	if len(all) == 0 || !all[0].Primary() {
		return errOurs("the primary ENI is not known yet")
	}
	var used []int
	for _, e := range all {
		if e.Card == s.card {
			used = append(used, e.Device)
		}
	}
	a.mu.Lock()
	for _, j := range a.joining {
		if j.card == s.card {
			used = append(used, j.device)
		}
	}
	a.mu.Unlock()
	at := s.at
	place := at.Places[0]
	id, device, err := a.provision.Attach(ctx, place, s.card, used, s.Count, s.Prefixes)
	if err = a.scarce(place.SubnetID, err); err != nil && at.config != "" {
		err = fmt.Errorf("after ENIConfig %s (correct its subnet and securityGroups if EC2 refuses them): %w", at.config, err)
	}
	if err != nil || id == "" {
		return err
	}
	if err := a.store.Retired(id); err != nil {
		return err // it is given back, and made anew
	}
	a.changed.Fire()
	a.join(id, s.card, device)
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
