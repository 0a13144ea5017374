package ledger

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// deaf is an API server that takes requests and never answers.
type deaf struct{ client.Reader }

func (deaf) Get(ctx context.Context, _ client.ObjectKey, _ client.Object, _ ...client.GetOption) error {
	<-ctx.Done()
	return ctx.Err()
}

func TestP49ACallWithoutAnAnswerHoldsALedgerUpForAWhileOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		st := &Store{Reader: deaf{}}
		update := func(ctx context.Context) error {
			_, err := st.Update(ctx, "i-1", func(*v1.BranchLedger) error { return nil })
			return err
		}
		first := make(chan error, 1)
		go func() { first <- update(context.Background()) }()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := update(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the second: %v", err)
		}
		if err := <-first; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("the first: %v", err)
		}
	})
}
