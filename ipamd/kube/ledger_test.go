package kube

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
)

func TestAMissingResourceIsAskedForRarelyAndFoundOnceItIsThere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		scheme, err := Scheme()
		if err != nil {
			t.Fatal(err)
		}
		var asked atomic.Int64
		var there atomic.Bool
		missing := func() error {
			asked.Add(1)
			if there.Load() {
				return nil
			}
			return apierrors.NewNotFound(schema.GroupResource{Group: "branchline.dev", Resource: "branchledgers"}, "")
		}
		byName := func(o client.Object) []string { return []string{o.GetName()} }
		api := fake.NewClientBuilder().WithScheme(scheme).
			WithObjects(&ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: "i-1"}}).
			WithIndex(&corev1.Pod{}, "spec.nodeName", func(o client.Object) []string { return []string{o.(*corev1.Pod).Spec.NodeName} }).
			WithIndex(&corev1.Node{}, "metadata.name", byName).
			WithIndex(&cninodev1.CNINode{}, "metadata.name", byName).
			WithIndex(&ledgerv1.BranchLedger{}, "metadata.name", byName).
			WithInterceptorFuncs(interceptor.Funcs{
				List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) error {
					if _, ok := l.(*ledgerv1.BranchLedgerList); ok {
						if err := missing(); err != nil {
							return err
						}
					}
					return c.List(ctx, l, o...)
				},
				Watch: func(ctx context.Context, c client.WithWatch, l client.ObjectList, o ...client.ListOption) (watch.Interface, error) {
					if _, ok := l.(*ledgerv1.BranchLedgerList); ok {
						if err := missing(); err != nil {
							return nil, err
						}
					}
					return c.Watch(ctx, l, o...)
				},
			}).Build()
		c, err := New(Options{API: api, NodeName: "n", InstanceID: "i-1", Log: slog.New(slog.NewTextHandler(io.Discard, nil))})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); c.Run(ctx) }()
		time.Sleep(2 * time.Hour)
		if n := asked.Load(); n < 10 || n > 30 {
			t.Errorf("asked %d times in two hours", n)
		}
		if _, err := c.Ledger(); !errors.Is(err, ErrNoLedgers) {
			t.Errorf("no such resource: %v", err)
		}
		there.Store(true)
		time.Sleep(15 * time.Minute)
		if l, err := c.Ledger(); err != nil || l.Name != "i-1" {
			t.Errorf("the resource came: %v, %v", l, err)
		}
		if err := api.Delete(ctx, &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: "i-1"}}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if _, err := c.Ledger(); !errors.Is(err, ErrNoLedger) {
			t.Errorf("the object went: %v", err)
		}
		cancel()
		<-done
	})
}
