package ledger

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// ErrUnchanged is what a change function returns when there is nothing to write.
var ErrUnchanged = errors.New("nothing to change")

// Store reads and writes ledgers in the API server.
type Store struct {
	// Reader bypasses every cache: a transition is decided on what is stored.
	Reader client.Reader
	Writer client.Writer

	// One writer at a time per ledger within the process: its pods' workers would only make each other try again.
	locks sync.Map // instance id -> chan struct{} with room for the one whose turn it is
}

// updateTimeout bounds how long one change may keep others from the same ledger.
const updateTimeout = 30 * time.Second

// Get reads one ledger, bypassing caches.
func (st *Store) Get(ctx context.Context, instanceID string) (*v1.BranchLedger, error) {
	var l v1.BranchLedger
	if err := st.Reader.Get(ctx, client.ObjectKey{Name: instanceID}, &l); err != nil {
		return nil, fmt.Errorf("read ledger of %s: %w", instanceID, err)
	}
	return &l, nil
}

// Update reads the ledger, changes it and writes it back, again and again until nobody else wrote in between. change
// may be called several times; ErrUnchanged from it ends the update without a write, any other error as it is. The
// ledger is returned as it is stored.
func (st *Store) Update(ctx context.Context, instanceID string, change func(*v1.BranchLedger) error) (*v1.BranchLedger, error) {
	lock, _ := st.locks.LoadOrStore(instanceID, make(chan struct{}, 1))
	turn := lock.(chan struct{})
	select {
	case turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait to change the ledger of %s: %w", instanceID, context.Cause(ctx))
	}
	defer func() { <-turn }()
	ctx, cancel := context.WithTimeout(ctx, updateTimeout)
	defer cancel()
	var l *v1.BranchLedger
	// The last attempt's error is kept here: OnError takes a deadline's for one of its own and returns nil.
	var err error
	_ = retry.OnError(retry.DefaultBackoff, apierrors.IsConflict, func() error {
		err = func() error {
			var err error
			if l, err = st.Get(ctx, instanceID); err != nil {
				return err
			}
			if err = change(l); err != nil {
				return err
			}
			if err := st.Writer.Update(ctx, l); err != nil {
				return fmt.Errorf("write ledger of %s: %w", instanceID, err)
			}
			return nil
		}()
		return err
	})
	if errors.Is(err, ErrUnchanged) {
		return l, nil
	}
	if err != nil {
		return nil, err
	}
	return l, nil
}
