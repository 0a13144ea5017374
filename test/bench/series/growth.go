package series

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/branchline-cni/branchline/test/bench/stats"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// Point is the ADD of the Pod-th pod of a node beside the ADD of the first pod of another node, run by turns.
type Point struct {
	Contender string
	Pod       int
	// Pod's and first's median run, one entry per round.
	Here, First []time.Duration
}

// Growth measures how ADD grows with the pods that a node has already: at the 1st pod, each step-th and the last. For
// each contender there are two host namespaces, one that fills and one that stays empty, so that both sides of each ratio are
// taken within the same seconds.
func Growth(ctx context.Context, o Options, most, step, pairs int) (points []*Point, err error) {
	at := milestones(most, step)
	byKey := map[string]*Point{}
	for _, k := range at {
		for _, name := range o.Contenders {
			p := &Point{Contender: name, Pod: k}
			points, byKey[key(name, ADD, k)] = append(points, p), p
		}
	}
	for round := range o.Rounds {
		fmt.Fprintf(o.Progress, "growth to %d pods, round %d of %d\n", most, round+1, o.Rounds)
		if err := growOnce(ctx, o, fmt.Sprintf("growth-%d", round), at, pairs, byKey); err != nil {
			return nil, err
		}
	}
	return points, nil
}

// milestones are the pods at which growth is measured.
func milestones(most, step int) []int {
	at := []int{1}
	for k := step; k < most; k += step {
		at = append(at, k)
	}
	return slices.Compact(append(at, most))
}

func growOnce(ctx context.Context, o Options, dir string, at []int, pairs int, points map[string]*Point) (err error) {
	type node struct{ full, empty *arena }
	var nodes []node
	most := at[len(at)-1]
	for i, name := range o.Contenders {
		pods, err := world.Make(most + 1)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, world.Close(pods)) }()
		var n node
		if n.full, err = newArena(name, o.Bin, folder(o.Dir, dir+"-full", i), pods[:most]); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, n.full.close()) }()
		if n.empty, err = newArena(name, o.Bin, folder(o.Dir, dir+"-empty", i), pods[most:]); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, n.empty.close()) }()
		nodes = append(nodes, n)
	}
	filled := 0
	for _, k := range at {
		for _, n := range nodes {
			var more []int
			for i := filled; i < k-1; i++ {
				more = append(more, i)
			}
			p, err := n.full.run(ctx, ADD, more, 2)
			if err := errors.Join(append(p.errs, err)...); err != nil {
				return fmt.Errorf("fill a node with %d pods: %w", k-1, err)
			}
		}
		filled = k - 1
		here, first := make([][]time.Duration, len(nodes)), make([][]time.Duration, len(nodes))
		for pair := range pairs {
			for i, n := range nodes {
				sides := []struct {
					a     *arena
					pod   int
					walls *[]time.Duration
				}{{n.full, k - 1, &here[i]}, {n.empty, 0, &first[i]}}
				if pair%2 == 1 {
					sides[0], sides[1] = sides[1], sides[0]
				}
				for _, s := range sides {
					wall, err := s.a.once(ctx, s.pod)
					if err != nil {
						return err
					}
					*s.walls = append(*s.walls, wall)
				}
			}
		}
		for i, n := range nodes {
			p := points[key(n.full.Name, ADD, k)]
			p.Here = append(p.Here, stats.Quantile(here[i], 0.5))
			p.First = append(p.First, stats.Quantile(first[i], 0.5))
		}
	}
	return nil
}

// once wires a pod, takes the wiring away again and returns the ADD's time.
func (a *arena) once(ctx context.Context, pod int) (wall time.Duration, err error) {
	err = a.host.Do(func() error {
		o, err := a.add(ctx, pod, directly)
		if err != nil {
			return err
		}
		wall = o.wall
		_, err = a.del(ctx, pod, directly)
		return err
	})
	return wall, err
}
