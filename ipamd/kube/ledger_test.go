package kube

import (
	"context"
	"errors"
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
)

func TestAMissingResourceIsAskedForRarelyAndFoundOnceItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		answer := error(apierrors.NewNotFound(schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}, ""))
		c := &Client{noLedgers: absence{most: ledgersMost, changed: func() {}}}
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
