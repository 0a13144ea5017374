package kube

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// Why there is no ledger to read.
var (
	// ErrNoLedgers: the API server doesn't know branch ledgers. With the hosted control plane there are none.
	ErrNoLedgers = errors.New("the API server knows no branch ledgers")
	// ErrNoLedger: it knows them, and this instance has none (yet, or no more).
	ErrNoLedger = errors.New("this instance has no branch ledger")
)

// Ledger returns this instance's branch ledger from memory: ErrNotSynced while that is not known, ErrNoLedgers or
// ErrNoLedger where there is none. It must not be changed.
func (c *Client) Ledger() (*ledgerv1.BranchLedger, error) {
	if c.noLedgers.is() && !c.Stamps() { // which doubts it: our controller stamps pods, and keeps ledgers
		return nil, ErrNoLedgers
	}
	if !c.ledger.HasSynced() {
		return nil, ErrNotSynced
	}
	for _, obj := range c.ledger.GetStore().List() {
		if l, ok := obj.(*ledgerv1.BranchLedger); ok && l.Name == c.opt.InstanceID {
			return l, nil
		}
	}
	return nil, ErrNoLedger
}

// EditReleased changes the list of released pods in the ledger's status: edit is given what is there and returns what
// should be, or the same to leave it. It is one get and one merge patch that carries the resourceVersion, tried again
// when someone else was faster.
func (c *Client) EditReleased(ctx context.Context, edit func([]ledgerv1.Released, *ledgerv1.BranchLedger) (next []ledgerv1.Released, changed bool)) error {
	return untilFirst(ctx, func() error {
		var l ledgerv1.BranchLedger
		err := c.opt.API.Get(ctx, types.NamespacedName{Name: c.opt.InstanceID}, &l)
		if apierrors.IsNotFound(err) {
			return ErrNoLedger
		}
		if err != nil {
			return fmt.Errorf("get branch ledger %s: %w", c.opt.InstanceID, err)
		}
		next, changed := edit(l.Status.Released, &l)
		if !changed {
			return nil
		}
		if next == nil {
			next = []ledgerv1.Released{}
		}
		patch := map[string]any{
			"metadata": map[string]any{"resourceVersion": l.ResourceVersion},
			"status":   map[string]any{"released": next},
		}
		if err := c.merge(ctx, &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: c.opt.InstanceID}}, patch, "status"); err != nil {
			return fmt.Errorf("say in branch ledger %s what is released: %w", c.opt.InstanceID, err)
		}
		return nil
	})
}
