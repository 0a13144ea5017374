package ipamd

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// giveBack has EC2 take addresses back that the store says are leaving. first says that it was never asked to: then what it refuses
// is as it was before.
func (a *Agent) giveBack(ctx context.Context, eniID string, units []netip.Prefix, first bool) error {
	certain, err := a.provision.Unassign(ctx, eniID, units)
	if err != nil {
		if certain && first {
			err = errors.Join(err, a.store.Left(eniID, units)) // nothing happened: they are as good as before
		}
		return err
	}
	a.inventory.Forget(eniID, units)
	for _, u := range units {
		a.takenBack[store.Leaving{Prefix: u, ENIID: eniID}] = a.opt.Now()
	}
	return nil
}

// askAgain is how long IMDS may show what EC2 took back, before EC2 is asked once more: it may have said so by an older state,
// in which the address was not there yet.
const askAgain = 2 * enis.MetadataLate

// nextAsked is how long until then; 0 where nothing is waited for. What is due and not done is so for want of an occasion: the
// pool grows first.
func (a *Agent) nextAsked() (next time.Duration) {
	for _, at := range a.takenBack {
		next = soonest(next, max(0, askAgain-a.opt.Now().Sub(at)))
	}
	return next
}

// resumeLeaving gives back what an earlier try, also of an earlier run, may not have given back, and drops the notes of
// what nobody shows any more.
func (a *Agent) resumeLeaving(ctx context.Context) (did bool, err error) {
	owed, gone := map[string][]netip.Prefix{}, map[string][]netip.Prefix{}
	for _, l := range a.store.View().Leaving {
		at, back := a.takenBack[l]
		switch {
		case back && !a.inventory.Forgotten(l.ENIID, l.Prefix):
			gone[l.ENIID] = append(gone[l.ENIID], l.Prefix)
		case !back || a.opt.Now().Sub(at) >= askAgain:
			owed[l.ENIID] = append(owed[l.ENIID], l.Prefix)
		}
	}
	for id, units := range gone {
		if err := a.store.Left(id, units); err != nil {
			return true, err
		}
		for _, u := range units {
			delete(a.takenBack, store.Leaving{Prefix: u, ENIID: id})
		}
	}
	for id, units := range owed {
		return true, a.giveBack(ctx, id, units, false)
	}
	return false, nil
}

// retireTimeout is how long an ENI's way out may hold the pool up. A detachment that hangs goes on with the next try.
const retireTimeout = 30 * time.Second

// resumeRetirement gives back one of the ENIs that the store says are on their way out, also of an earlier run. did says
// that there was one: there may be more.
func (a *Agent) resumeRetirement(ctx context.Context) (did bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, retireTimeout)
	defer cancel()
	retiring := a.store.View().Retiring
	if len(retiring) == 0 {
		return false, nil
	}
	id := retiring[0]
	if err := a.provision.Retire(ctx, id); err != nil {
		return true, err
	}
	// Until IMDS and the link are gone the note stays, so that nothing of it is handed out.
	a.links.Fire()
	gone := a.await(ctx, a.opt.joinTimeout, func() bool {
		return !slices.ContainsFunc(a.inventory.ENIs(), func(e enis.ENI) bool { return e.ID == id })
	})
	if !gone {
		return true, errOurs(id + " was deleted and IMDS still shows it")
	}
	return true, a.store.Retired(id)
}
