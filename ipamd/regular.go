package ipamd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/placement"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/pool"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// addRegular gives a free address, one of each network card where the pod asks for several, and waits for them where the pool
// can have more, or where some cool down. Until all are there it holds none.
func (a *Agent) addRegular(ctx context.Context, k store.Key, network string, p store.Pod, several bool) (al store.Allocation, err error) {
	ctx, cancel := context.WithTimeout(ctx, addressFor)
	defer cancel()
	done, began := func() {}, time.Now()
	defer func() {
		a.metrics.waited(waitAddress, began)
		done()
	}()
	var waiting []int
	for {
		channels := []<-chan struct{}{a.inventory.Changed.C(), a.changed.C()}
		cards, known := []int{0}, true
		if several {
			cards, known = a.severalCards()
		}
		if !known {
			if ctx.Err() != nil {
				return al, fmt.Errorf("%w: which network cards have ENIs for pods is not known yet: look at the node agent's log", podeni.ErrUnavailable)
			}
			wait(ctx, unsettledMost, channels...)
			continue
		}
		free := a.candidates()
		al, err = a.store.AssignRegular(k, network, p, ofCard(free, 0), furtherCards(free, cards[1:])...)
		if !errors.Is(err, store.ErrNoAddress) {
			if err == nil {
				a.changed.Fire()
			}
			return al, err
		}
		if ctx.Err() != nil && !a.hasListed() {
			return al, fmt.Errorf("%w: %w", podeni.ErrUnavailable, a.unlisted())
		}
		if why := a.exhausted(ctx, lackingCards(err), several); why != nil {
			return al, fmt.Errorf("%w for pod %s: %w", store.ErrNoAddress, p, why)
		}
		if !slices.Equal(waiting, cards) {
			done()
			done, waiting = a.wants(k, cards), cards
			a.changed.Fire()
			continue
		}
		wait(ctx, a.nextCooled(), channels...)
	}
}

// furtherCards sorts what is free by card.
func furtherCards(free []store.Regular, cards []int) (out []store.Card) {
	for _, card := range cards {
		out = append(out, store.Card{Number: card, Candidates: ofCard(free, card)})
	}
	return out
}

// lackingCards are those that had no address.
func lackingCards(err error) []int {
	var lacking *store.LackingError
	if errors.As(err, &lacking) {
		return lacking.Cards
	}
	return []int{0}
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

// exhausted says why waiting for addresses of these network cards is useless; nil where it is not. One card that can't have
// any is enough.
func (a *Agent) exhausted(ctx context.Context, cards []int, several bool) error {
	var errs []error
	listed := a.hasListed() // read first: where it is so, the ENIs that are looked at then are known
	for _, p := range a.cardPools(cards...) {
		errs = append(errs, onCard(p.card, several, a.exhaustedOn(ctx, p, listed)))
	}
	return errors.Join(errs...)
}

func (a *Agent) exhaustedOn(ctx context.Context, p cardPool, listed bool) error {
	a.mu.Lock()
	poolErr := a.poolErr
	a.mu.Unlock()
	s, at := p.Snapshot, p.at
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
	case at.Reason == placement.NotKnown || !listed || pool.Room(s) > 0 || pool.Free(s) > 0 || a.nextCooled() > 0 || p.coming:
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
