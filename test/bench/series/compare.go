package series

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/stats"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// Options says how much is measured, and where.
type Options struct {
	Bin, Dir    string // executables; a new folder for what contenders write
	Contenders  []string
	Pods        int // of a phase
	Rounds      int
	Concurrency []int
	Progress    io.Writer
}

// Cell is what a contender did of one verb at one concurrency, over all rounds.
type Cell struct {
	Contender   string
	Verb        string
	Concurrency int
	Walls       []time.Duration // of the runs that succeeded
	// The others have one entry per round: the median run, the median without the process around (the bare loop only), the
	// time from the first start to the last end divided by the runs, and the mean CPU time.
	Medians, Loops, Phases, CPUs []time.Duration
	Failures                     []string
	PeakKiB                      int64 // of the verb at concurrency 1
}

// Compare measures the contenders side by side. A run that fails is counted, and is no error.
func Compare(ctx context.Context, o Options) (cells []*Cell, err error) {
	pods, err := world.Make(o.Pods)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, world.Close(pods)) }()
	var arenas []*arena
	defer func() {
		for _, a := range arenas {
			err = errors.Join(err, a.close())
		}
	}()
	byKey := map[string]*Cell{}
	for i, name := range o.Contenders {
		a, err := newArena(name, o.Bin, folder(o.Dir, "compare", i), pods)
		if err != nil {
			return nil, err
		}
		arenas = append(arenas, a)
		for _, c := range o.Concurrency {
			for _, verb := range []string{ADD, DEL} {
				cell := &Cell{Contender: name, Verb: verb, Concurrency: c}
				cells = append(cells, cell)
				byKey[key(name, verb, c)] = cell
			}
		}
	}
	for round := range o.Rounds {
		fmt.Fprintf(o.Progress, "round %d of %d\n", round+1, o.Rounds)
		// The memory first: its runs also warm up what the others read.
		for _, a := range arenas {
			if err := a.peak(ctx, byKey, o.Concurrency); err != nil {
				return nil, err
			}
		}
		for _, c := range o.Concurrency {
			for i := range arenas {
				// Each round begins with another one: none is always the first after a pause.
				a := arenas[(i+round)%len(arenas)]
				numbers := upTo(o.Pods)
				if a.MaxPods > 0 && len(numbers) > a.MaxPods {
					numbers = numbers[:a.MaxPods]
				}
				for _, verb := range []string{ADD, DEL} {
					p, err := a.run(ctx, verb, numbers, c)
					if err != nil {
						return nil, err
					}
					if err := byKey[key(a.Name, verb, c)].take(a, p); err != nil {
						return nil, err
					}
				}
			}
		}
	}
	return cells, nil
}

func key(name, verb string, concurrency int) string {
	return fmt.Sprintf("%s/%s/%d", name, verb, concurrency)
}

func (c *Cell) take(a *arena, p phase) error {
	var walls, loops []time.Duration
	var cpu time.Duration
	for _, o := range p.outcomes {
		walls = append(walls, o.wall)
		cpu += o.cpu
		if a.Loop != nil {
			ns, err := a.Loop(o.stdout)
			if err != nil {
				return fmt.Errorf("the loop's time of %s: %w", a.Name, err)
			}
			loops = append(loops, time.Duration(ns))
		}
	}
	for _, err := range p.errs {
		c.Failures = append(c.Failures, err.Error())
	}
	c.Walls = append(c.Walls, walls...)
	c.Medians = append(c.Medians, stats.Quantile(walls, 0.5))
	c.Phases = append(c.Phases, p.wall/time.Duration(max(len(walls), 1)))
	c.CPUs = append(c.CPUs, cpu/time.Duration(max(len(walls), 1)))
	if a.Loop != nil {
		c.Loops = append(c.Loops, stats.Quantile(loops, 0.5))
	}
	return nil
}

// peak measures the memory of one ADD and one DEL, apart from the time.
func (a *arena) peak(ctx context.Context, cells map[string]*Cell, concurrency []int) error {
	return a.host.Do(func() error {
		for _, verb := range []string{ADD, DEL} {
			var kib int64
			run := func(ctx context.Context, inv contender.Invocation) (o outcome, err error) {
				kib, o, err = peakMemory(ctx, a.bin, inv)
				return o, err
			}
			do := a.add
			if verb == DEL {
				do = a.del
			}
			if _, err := do(ctx, 0, run); err != nil {
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				first := cells[key(a.Name, verb, concurrency[0])]
				first.Failures = append(first.Failures, err.Error())
				return nil // without an ADD no DEL
			}
			for _, c := range concurrency {
				cell := cells[key(a.Name, verb, c)]
				cell.PeakKiB = max(cell.PeakKiB, kib)
			}
		}
		return nil
	})
}
