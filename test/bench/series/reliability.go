package series

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/branchline-cni/branchline/test/bench/world"
)

// Reliability counts failures.
type Reliability struct {
	Contender               string
	Runs, Pods, Concurrency int
	FailedADDs, FailedDELs  int
	LinksLeft               int // at the end
	Wall                    time.Duration
	Failures                []string
}

// Reliably wires and unwires pods, run after run, and counts what fails and what is left.
func Reliably(ctx context.Context, o Options, name string, runs, pods, concurrency int) (r Reliability, err error) {
	r = Reliability{Contender: name, Runs: runs, Pods: pods, Concurrency: concurrency}
	spaces, err := world.Make(pods)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, world.Close(spaces)) }()
	a, err := newArena(name, o.Bin, folder(o.Dir, "reliability", 0), spaces)
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	before, err := a.host.Links()
	if err != nil {
		return r, err
	}
	start := time.Now()
	for run := range runs {
		if run%10 == 0 {
			fmt.Fprintf(o.Progress, "reliability: run %d of %d, %d ADDs failed\n", run+1, runs, r.FailedADDs)
		}
		for _, verb := range []string{ADD, DEL} {
			p, err := a.run(ctx, verb, upTo(pods), concurrency)
			if err != nil {
				return r, err
			}
			if verb == ADD {
				r.FailedADDs += len(p.errs)
			} else {
				r.FailedDELs += len(p.errs)
			}
			for _, err := range p.errs {
				r.Failures = append(r.Failures, fmt.Sprintf("run %d: %v", run+1, err))
			}
		}
	}
	r.Wall = time.Since(start)
	after, err := a.host.Links()
	r.LinksLeft = after - before
	return r, err
}
