package demo

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// How long a step does something, from its start on, that a kill may hit: the rollout with the trunk, the pods' start, and
// the pods' end with the cool-down and the rollout after it.
const (
	rolloutTakes = 25 * time.Second
	podsTake     = 25 * time.Second
	cleanUpTakes = 65 * time.Second
)

// scheduleKills ends the agent, the controller and the API server once each with SIGKILL, at moments drawn from the
// seed, within the step's first part of that length. The returned function waits until all three were killed.
func (w *walk) scheduleKills(ctx context.Context, within time.Duration) func() error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	var wg sync.WaitGroup
	errs := make([]error, len(lab.Victims))
	began := time.Now()
	for i, v := range lab.Victims {
		after := time.Duration(w.rand.Int64N(int64(within))).Round(10 * time.Millisecond)
		w.Note("kill -9 of the %s is due %s into this step (seed %d)", v, after, w.opt.Seed)
		wg.Add(1)
		go func() {
			defer wg.Done()
			select {
			case <-ctx.Done():
				errs[i] = fmt.Errorf("kill the %s: %w", v, context.Cause(ctx))
				return
			case <-time.After(after):
			}
			what, err := w.lab.Kill(ctx, v)
			if err != nil {
				errs[i] = fmt.Errorf("kill the %s: %w", v, err)
				return
			}
			w.Note("[kill] %s, %.2f s into the step: %s", v, time.Since(began).Seconds(), what)
		}()
	}
	return func() error {
		wg.Wait()
		cancel()
		return errors.Join(errs...)
	}
}
