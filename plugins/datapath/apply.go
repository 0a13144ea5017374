package datapath

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// undoTime is what an undo may take beyond the deadline that may have caused it.
const undoTime = 5 * time.Second

// Apply wires the sandbox whose network namespace podNS is open on. When it fails, or the context ends, everything that
// it has made is gone again; what can't be taken away is joined to the error. The caller holds the pod's lock and, for
// a branch pod, the VLAN id's.
//
// Links of the same names that an older sandbox has left behind are replaced: their DEL has not come yet.
func Apply(ctx context.Context, p Plan, podNS int) error {
	k, err := openKernel(ctx, p.Owner, podNS)
	if err != nil {
		return err
	}
	defer k.close()
	for i, step := range p.Steps {
		if ctx.Err() != nil {
			err := &StepError{Step: step, Err: fmt.Errorf("not begun: %w", context.Cause(ctx))}
			return errors.Join(err, k.undo(p.Steps[:i]))
		}
		if err := k.do(step); err != nil {
			// The failed step itself is undone as well: it may have been done in part.
			return errors.Join(err, k.undo(p.Steps[:i+1]))
		}
	}
	if err := k.flush(); err != nil {
		return errors.Join(err, k.undo(p.Steps))
	}
	if err := k.awaitCarriers(append([]AddVeth{p.HostVeth}, p.Further...)); err != nil {
		return errors.Join(err, k.undo(p.Steps))
	}
	return nil
}

func (k *kernel) undo(done []Step) error {
	ctx, cancel := context.WithTimeout(context.Background(), undoTime)
	defer cancel()
	k.queue, k.doomed = nil, nil
	errs := []error{k.deadline(ctx)}
	for _, step := range Undo(done) {
		if err := k.do(step); err != nil {
			errs = append(errs, fmt.Errorf("undo: %w", err))
		}
	}
	if err := k.flush(); err != nil {
		errs = append(errs, fmt.Errorf("undo: %w", err))
	}
	return errors.Join(errs...)
}
