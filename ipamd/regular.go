package ipamd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// addRegular gives a free address, and waits for one where the pool can have more, or where some cool down.
func (a *Agent) addRegular(ctx context.Context, k store.Key, network string, p store.Pod) (al store.Allocation, err error) {
	ctx, cancel := context.WithTimeout(ctx, addressFor)
	defer cancel()
	waiting, began := false, time.Now()
	defer func() {
		a.metrics.waited(waitAddress, began)
		if waiting {
			a.waiting.Add(-1)
		}
	}()
	for {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C()}
		al, err = a.store.AssignRegular(k, network, p, a.candidates())
		if !errors.Is(err, store.ErrNoAddress) {
			if err == nil {
				a.changed.Fire()
			}
			return al, err
		}
		if ctx.Err() != nil && !a.hasListed() {
			return al, fmt.Errorf("%w: the ENIs of this node are not known yet", podeni.ErrUnavailable)
		}
		if why := a.exhausted(ctx); why != nil {
			return al, fmt.Errorf("%w for pod %s: %w", store.ErrNoAddress, p, why)
		}
		if !waiting {
			waiting = true
			a.waiting.Add(1)
			a.changed.Fire()
			continue
		}
		wait(ctx, a.nextCooled(), channels...)
	}
}

// hasListed says whether the ENIs are known and their routing is in place.
func (a *Agent) hasListed() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.listed
}

// routedStrictly says whether what branch pods and this node send to each other passes their security groups.
func (a *Agent) routedStrictly() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.strict
}

// expecting says whether an ENI is attached whose addresses are not known yet: IMDS shows it late.
func (a *Agent) expecting() bool {
	all := a.inventory.ENIs()
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.joining {
		if !slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			return true
		}
	}
	return false
}

// exhausted says why waiting for an address is useless; nil where it is not.
func (a *Agent) exhausted(ctx context.Context) error {
	a.mu.Lock()
	listed, poolErr := a.listed, a.poolErr
	a.mu.Unlock()
	s, at := a.placedSnapshot()
	_, why := at.why(a.configured())
	switch {
	case ctx.Err() != nil && poolErr != nil:
		return fmt.Errorf("EC2 gave no more: %w", a.explained(poolErr))
	case ctx.Err() != nil && why != "":
		return errors.New(why)
	case ctx.Err() != nil:
		return a.late()
	case a.opt.Config.IPv6 && listed && pool.Free(s) == 0:
		return a.exhaustedIPv6(s)
	case at.Reason == placement.NotKnown || !listed || pool.Room(s) > 0 || pool.Free(s) > 0 || a.nextCooled() > 0 || a.expecting():
		return nil
	case s.Frozen:
		return errors.New("this node agent asks EC2 for none (DISABLE_NETWORK_RESOURCE_PROVISIONING or ENABLE_IMDS_ONLY_MODE) and every address that is attached is taken: attach more, or run fewer pods here")
	case !a.limitsKnown():
		return nil
	case s.Settled && s.Attached < s.MaxENIs:
		return errors.New("the node is cordoned, and gets no more ENIs while it is: uncordon it, or set AWS_MANAGE_ENIS_NON_SCHEDULABLE=true")
	case why != "" && s.Attached < s.MaxENIs:
		return errors.New(why)
	case slices.ContainsFunc(s.ENIs, func(e pool.ENI) bool { return e.Full && len(e.Units) < s.Places }):
		return errors.New(aws.CodeSubnetFull + ": the subnets of this node's ENIs have no free address, and the instance has no slot for an ENI in another: free some addresses there, or run fewer pods on this node")
	default:
		return fmt.Errorf("all ENIs that instance type %s can have for regular pods (%d in all, MAX_ENI considered) are there and full", a.opt.Identity.InstanceType, s.MaxENIs)
	}
}
