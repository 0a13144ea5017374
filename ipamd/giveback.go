package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/branchline-cni/branchline/ipamd/enis"
)

// giveBack has EC2 take addresses back that the store says are leaving.
func (a *Agent) giveBack(ctx context.Context, eniID string, units []netip.Prefix) error {
	certain, err := a.provision.Unassign(ctx, eniID, units)
	if err != nil {
		if certain {
			err = errors.Join(err, a.store.Left(units)) // nothing happened: they are as good as before
		}
		return err
	}
	a.inventory.Forget(eniID, units)
	for _, u := range units {
		a.takenBack[u] = true
	}
	return nil
}

// resumeLeaving gives back what an earlier try, also of an earlier run, may not have given back, and drops the notes of
// what nobody shows any more.
func (a *Agent) resumeLeaving(ctx context.Context) (did bool, err error) {
	owed, gone := map[string][]netip.Prefix{}, []netip.Prefix(nil)
	for _, l := range a.store.View().Leaving {
		switch {
		case !a.takenBack[l.Prefix]:
			owed[l.ENIID] = append(owed[l.ENIID], l.Prefix)
		case !a.inventory.Forgotten(l.Prefix):
			gone = append(gone, l.Prefix)
		}
	}
	if len(gone) > 0 {
		if err := a.store.Left(gone); err != nil {
			return true, err
		}
		for _, u := range gone {
			delete(a.takenBack, u)
		}
	}
	for id, units := range owed {
		return true, a.giveBack(ctx, id, units)
	}
	return false, nil
}

// resumeRetirement gives back one of the ENIs that the store says are on their way out, also of an earlier run. did says
// that there was one: there may be more.
func (a *Agent) resumeRetirement(ctx context.Context) (did bool, err error) {
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
		return true, fmt.Errorf("%s was deleted and IMDS still shows it", id)
	}
	return true, a.store.Retired(id)
}
