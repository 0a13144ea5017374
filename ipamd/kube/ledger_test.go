package kube

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
)

// unledgered is a client whose API server knows no branch ledgers, as far as it has asked.
func unledgered() *Client {
	none := func(o runtime.Object) cache.SharedIndexInformer {
		return cache.NewSharedIndexInformer(&cache.ListWatch{}, o, 0, cache.Indexers{})
	}
	return &Client{opt: Options{NodeName: "n"}, noLedgers: absence{most: ledgersMost, changed: func() {}}, cninode: none(&cninodev1.CNINode{}), ledger: none(&ledgerv1.BranchLedger{})}
}

// Our control plane is installed on nodes that run: no pod is wired because the agent asked for ledgers minutes ago.
func TestWhereOurControllerStampsPodsItsLedgersAreAskedForAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var asked atomic.Pointer[time.Time]
		ago := func() time.Duration { return time.Since(*asked.Load()) }
		missing := error(apierrors.NewNotFound(schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}, ""))
		c := unledgered()
		lw := c.noLedgers.watch(&cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			now := time.Now()
			asked.Store(&now)
			return &ledgerv1.BranchLedgerList{}, missing
		}})
		go func() {
			for t.Context().Err() == nil {
				_, _ = lw.ListWithContextFunc(t.Context(), metav1.ListOptions{})
			}
		}()
		for time.Sleep(2 * time.Hour); ago() <= believedFirst; time.Sleep(believedFirst) { // in the middle of a long pause
		}
		if _, err := c.Ledger(); !errors.Is(err, ErrNoLedgers) {
			t.Fatalf("without our controller: %v", err)
		}
		n := &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: "n", Annotations: map[string]string{cninodev1.StampsAnnotation: cninodev1.StampsForm}}}
		if err := c.cninode.GetStore().Add(n); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Ledger(); !errors.Is(err, ErrNotSynced) {
			t.Errorf("with it: %v", err)
		}
		synctest.Wait()
		if ago() > 0 {
			t.Errorf("asked %s ago", ago())
		}
		// What was answered is believed, longer each time: the annotation may be left over from a former control plane.
		if _, err := c.Ledger(); !errors.Is(err, ErrNoLedgers) || c.Stamps() {
			t.Errorf("after the answer: %v, stamps %v", err, c.Stamps())
		}
		unknown := 0
		for range 3600 {
			time.Sleep(time.Second)
			if _, err := c.Ledger(); errors.Is(err, ErrNotSynced) {
				unknown++
				synctest.Wait()
			}
		}
		if unknown > 12 {
			t.Errorf("doubted %d times in an hour", unknown)
		}
	})
}

func TestAMissingResourceIsAskedForRarelyAndFoundOnceItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		answer := error(apierrors.NewNotFound(schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}, ""))
		c := unledgered()
		lw := c.noLedgers.watch(&cache.ListWatch{
			ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				asked++
				return &ledgerv1.BranchLedgerList{}, answer
			},
			WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
				asked++
				return nil, answer
			},
		})
		ctx := context.Background()
		// A reflector may begin with either, and tries again at once here.
		for start := time.Now(); time.Since(start) < 2*time.Hour; {
			if _, err := lw.WatchFuncWithContext(ctx, metav1.ListOptions{}); !errors.Is(err, answer) {
				t.Fatal(err)
			}
			if _, err := lw.ListWithContextFunc(ctx, metav1.ListOptions{}); !errors.Is(err, answer) {
				t.Fatal(err)
			}
		}
		if asked < 10 || asked > 40 {
			t.Errorf("asked %d times in two hours", asked)
		}
		if _, err := c.Ledger(); !errors.Is(err, ErrNoLedgers) {
			t.Errorf("no such resource: %v", err)
		}
		ended, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := lw.ListWithContextFunc(ended, metav1.ListOptions{}); !errors.Is(err, context.Canceled) {
			t.Errorf("the end while it waits: %v", err)
		}
		answer = nil
		start := time.Now()
		if _, err := lw.ListWithContextFunc(ctx, metav1.ListOptions{}); err != nil || time.Since(start) > 15*time.Minute {
			t.Errorf("the resource came: %v after %s", err, time.Since(start))
		}
		start = time.Now()
		if _, err := lw.WatchFuncWithContext(ctx, metav1.ListOptions{}); err != nil || time.Since(start) > 0 {
			t.Errorf("and is read without a pause: %v after %s", err, time.Since(start))
		}
		if c.noLedgers.is() {
			t.Error("the ledgers are not believed in")
		}
	})
}
