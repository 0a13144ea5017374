package branch

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
)

// SweepEvery is how often leaked ENIs are looked for.
const SweepEvery = 10 * time.Minute

// Sweep deletes ENIs with the controller's tags that no ledger knows of and no living pod may use. It asks EC2 once per page
// of the cluster's ENIs, however many nodes there are.
type Sweep struct {
	// Live bypasses caches: the ledgers are read after EC2, so that whatever EC2 showed was written down before.
	Live     client.Reader
	Cloud    *cloud.Client
	Log      *slog.Logger
	Now      func() time.Time
	CoolDown func(context.Context) time.Duration
	Every    time.Duration
}

// Start runs until the context ends. It implements manager.Runnable.
func (s *Sweep) Start(ctx context.Context) error {
	every := s.Every
	if every == 0 {
		every = SweepEvery
	}
	tick := time.NewTicker(every)
	defer tick.Stop()
	for {
		if err := s.Once(ctx); err != nil && ctx.Err() == nil {
			s.Log.WarnContext(ctx, "sweep for leaked ENIs failed; it is tried again", "error", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// Once sweeps once.
func (s *Sweep) Once(ctx context.Context) error {
	made, err := s.Cloud.OfCluster(ctx)
	if err != nil || len(made) == 0 {
		return err
	}
	var ledgers ledgerv1.BranchLedgerList
	if err := s.Live.List(ctx, &ledgers); err != nil {
		return err
	}
	forgotten := leaked(made, ledgers.Items, s.Now(), 2*s.CoolDown(ctx))
	if len(forgotten) == 0 {
		return nil
	}
	pods, err := livingPods(ctx, s.Live)
	if err != nil {
		return err
	}
	var trunks []string
	for _, e := range forgotten {
		trunks = append(trunks, e.TrunkENIID)
	}
	associated, err := s.Cloud.AssociationIDs(ctx, trunks)
	if err != nil {
		return err
	}
	var failed []error
	for _, e := range forgotten {
		if pods.uses(&e) {
			s.Log.WarnContext(ctx, "no ledger knows of the branch ENI of a living pod: left alone", "eni", e.ID, "uid", e.PodUID, "instance", e.InstanceID)
			continue
		}
		s.Log.WarnContext(ctx, "deleting an ENI that no ledger knows of", "eni", e.ID, "description", e.Description, "instance", e.InstanceID, "createdAt", e.CreatedAt)
		failed = append(failed, s.Cloud.Remove(ctx, e.ID, associated[e.ID]))
	}
	return errors.Join(failed...)
}

// leaked chooses what may be deleted: old enough, and in no ledger by id, by claim or, for a trunk, by instance. A trunk
// that is attached, and what has no readable date or no claim, is left alone: every ENI that this controller makes has
// both, those of a hosted one have not.
func leaked(made []cloud.ENI, ledgers []ledgerv1.BranchLedger, now time.Time, age time.Duration) []cloud.ENI {
	enis, claims, instances := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for i := range ledgers {
		s := &ledgers[i].Spec
		instances[s.InstanceID] = true
		enis[s.TrunkENIID] = true
		for n := range s.Slots {
			enis[s.Slots[n].ENIID] = true
			if c := s.Slots[n].Claim; c != "" {
				claims[c] = true
			}
		}
	}
	var r []cloud.ENI
	for _, e := range made {
		switch {
		case enis[e.ID], claims[e.Claim], e.Claim == "", e.CreatedAt.IsZero(), now.Before(e.CreatedAt.Add(age)):
		case e.Description == cloud.TrunkDescription && (e.InUse || instances[e.InstanceID]):
		case e.Description == cloud.TrunkDescription, e.Description == cloud.BranchDescription:
			r = append(r, e)
		}
	}
	return r
}
