package kube

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

func TestAChangeThatAlwaysMeetsAnothersPausesMoreAndMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		conflict := fmt.Errorf("patch: %w", apierrors.NewConflict(schema.GroupResource{Resource: "cninodes"}, "n", nil))
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		start, tries := time.Now(), 0
		err := untilFirst(ctx, func() error { tries++; return conflict })
		if !errors.Is(err, context.DeadlineExceeded) || !apierrors.IsConflict(err) || time.Since(start) != 20*time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		if tries < 10 || tries > 30 {
			t.Errorf("%d tries in 20 s", tries)
		}
		tries = 0
		if err := untilFirst(t.Context(), func() error {
			if tries++; tries < 3 {
				return conflict
			}
			return ErrNoCNINode
		}); err != ErrNoCNINode || tries != 3 {
			t.Errorf("%v after %d tries", err, tries)
		}
	})
}
