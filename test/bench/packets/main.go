// Command packets measures what a packet costs on a node as pods become more: the round trip between a client outside
// and a pod, and how many packets a CPU second carries in each direction, with 1, 110 and 700 regular pods and 0, 60 and
// 120 strict branch pods. The layout that the node agent makes (ipamd/hostnet, the product's own code) stands beside the
// layout of two rules per pod and beside variants of ours, all in one run and in turns, so that whatever else the
// machine does disturbs all alike.
//
//	go run ./test/bench/packets [-rounds N] [-window D] [-json FILE]
//
// It needs root, and sends packets only inside network namespaces that it makes. It does not measure the CNI executable.
// Of branch pods only the rules are there, and one pod whose VLAN link is a veth pair: what is measured is the rules.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

var (
	regularCounts = []int{1, 110, 700}
	branchCounts  = []int{0, 60, 120}
)

func main() {
	rounds := flag.Int("rounds", 15, "how often each world is measured")
	window := flag.Duration("window", 40*time.Millisecond, "how long each of a round's measurements takes")
	out := flag.String("json", "", "`file` for the numbers; empty: none")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, *rounds, *window, *out)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "packets:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, rounds int, window time.Duration, out string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed to make network namespaces")
	}
	var worlds []*world
	defer func() {
		for _, w := range worlds {
			w.close()
		}
	}()
	for _, l := range layouts {
		for _, branch := range branchCounts {
			for _, regular := range regularCounts {
				w, err := newWorld(ctx, l, regular, branch)
				if err != nil {
					return fmt.Errorf("make a node with %d regular and %d branch pods, %s: %w", regular, branch, l.name, err)
				}
				worlds = append(worlds, w)
			}
		}
		fmt.Fprintf(os.Stderr, "made the nodes of layout %q\n", l.name)
	}
	for round := range rounds {
		for _, i := range rand.Perm(len(worlds)) {
			if ctx.Err() != nil {
				return errors.New("interrupted")
			}
			if err := worlds[i].measure(window); err != nil {
				return fmt.Errorf("measure %d regular and %d branch pods, %s: %w", worlds[i].regular, worlds[i].branch, worlds[i].layout.name, err)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d\n", round+1, rounds)
	}
	r := summarize(worlds)
	r.print(os.Stdout)
	if out == "" {
		return nil
	}
	b, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(out, append(b, '\n'), 0o644)
}
