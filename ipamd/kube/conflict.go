package kube

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

const (
	conflictFirst = 20 * time.Millisecond
	conflictMost  = 2 * time.Second
)

// untilFirst repeats a change, made of one read and one write that carries what was read, while someone else was faster. The
// pauses grow and are jittered: whoever rewrites the object all the time must not be joined in it by every node.
func untilFirst(ctx context.Context, change func() error) error {
	for d := conflictFirst; ; d = min(2*d, conflictMost) {
		err := change()
		if !apierrors.IsConflict(err) {
			return err
		}
		pause := time.NewTimer(d/2 + rand.N(d))
		select {
		case <-pause.C:
		case <-ctx.Done():
			pause.Stop()
			return fmt.Errorf("%w (last: %w)", context.Cause(ctx), err)
		}
	}
}
