// Package series runs contenders against each other, round by round so that what disturbs the machine disturbs all of
// them, and keeps what it has measured: the comparison by concurrency, the growth with the number of pods, and the count
// of failures. It prints nothing (package report does).
package series

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// Verbs, as they are in the results.
const (
	ADD = "ADD"
	DEL = "DEL"
)

// arena is one contender in its host namespace, with the pods that it wires.
type arena struct {
	*contender.Contender
	bin  string
	host *world.Namespace
	pods []*world.Namespace // by number; not the arena's own
	// sandboxes counts up, so that each has another container id.
	sandboxes atomic.Int64

	mu     sync.Mutex
	wired  map[int]contender.Pod
	result map[int][]byte // of ADD
}

// newArena makes a host namespace and prepares the contender in it; dir is a new folder of its own.
func newArena(name, bin, dir string, pods []*world.Namespace) (*arena, error) {
	hosts, err := world.Make(1)
	if err != nil {
		return nil, err
	}
	c, err := contender.New(name, bin, dir, hosts[0])
	if err != nil {
		return nil, errors.Join(err, world.Close(hosts))
	}
	return &arena{Contender: c, bin: bin, host: hosts[0], pods: pods, wired: map[int]contender.Pod{}, result: map[int][]byte{}}, nil
}

func (a *arena) close() error {
	return errors.Join(a.Close(), world.Close([]*world.Namespace{a.host}))
}

// how is the way an executable is run: by execute, but for its peak memory.
type how func(context.Context, contender.Invocation) (outcome, error)

func directly(ctx context.Context, inv contender.Invocation) (outcome, error) {
	return execute(ctx, inv)
}

// add wires the n-th pod. The calling thread is in the host namespace.
func (a *arena) add(ctx context.Context, n int, run how) (outcome, error) {
	p := contender.Pod{N: n, ContainerID: fmt.Sprintf("%064x", a.sandboxes.Add(1)), Netns: a.pods[n].Path()}
	inv, err := a.Add(p)
	if err != nil {
		return outcome{}, err
	}
	o, err := run(ctx, inv)
	if err != nil {
		return outcome{}, fmt.Errorf("ADD of pod %d by %s: %w", n, a.Name, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.wired[n], a.result[n] = p, o.stdout
	return o, nil
}

// del takes the n-th pod's wiring away again.
func (a *arena) del(ctx context.Context, n int, run how) (outcome, error) {
	a.mu.Lock()
	p, result := a.wired[n], a.result[n]
	delete(a.wired, n)
	a.mu.Unlock()
	inv, err := a.Del(p, result)
	if err != nil {
		return outcome{}, err
	}
	o, err := run(ctx, inv)
	if err != nil {
		return outcome{}, fmt.Errorf("DEL of pod %d by %s: %w", n, a.Name, err)
	}
	return o, nil
}

// phase is one verb for many pods at a time.
type phase struct {
	outcomes []outcome
	errs     []error
	wall     time.Duration // from the first start to the last end
}

// run does a verb for the pods, by so many workers at a time; each worker is a thread in the host namespace. Pods whose
// ADD has failed get no DEL.
func (a *arena) run(ctx context.Context, verb string, pods []int, workers int) (phase, error) {
	do := a.add
	if verb == DEL {
		do = a.del
		var wired []int
		for _, n := range pods {
			if _, ok := a.wired[n]; ok {
				wired = append(wired, n)
			}
		}
		pods = wired
	}
	var p phase
	var mu sync.Mutex
	var next atomic.Int64
	var wg sync.WaitGroup
	ready, begin := make(chan struct{}), make(chan struct{})
	broken := make([]error, workers)
	for w := range workers {
		wg.Go(func() {
			broken[w] = a.host.Do(func() error {
				ready <- struct{}{}
				<-begin
				for ctx.Err() == nil {
					i := int(next.Add(1)) - 1
					if i >= len(pods) {
						return nil
					}
					o, err := do(ctx, pods[i], directly)
					mu.Lock()
					if err != nil {
						p.errs = append(p.errs, err)
					} else {
						p.outcomes = append(p.outcomes, o)
					}
					mu.Unlock()
				}
				return nil
			})
			if broken[w] != nil {
				ready <- struct{}{}
			}
		})
	}
	for range workers {
		<-ready
	}
	start := time.Now()
	close(begin)
	wg.Wait()
	p.wall = time.Since(start)
	if ctx.Err() != nil {
		return phase{}, context.Cause(ctx)
	}
	return p, errors.Join(broken...)
}

// upTo is the numbers from 0 to n-1.
func upTo(n int) []int {
	out := make([]int, n)
	for i := range out {
		out[i] = i
	}
	return out
}

// folder is a new one for the arena number i of a series.
func folder(dir, series string, i int) string {
	return filepath.Join(dir, fmt.Sprintf("%s-%d", series, i))
}
