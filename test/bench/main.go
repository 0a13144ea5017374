// Command bench measures the CNI executable beside others of its kind, in one run:
//
//   - aws-cni as it ships, against an agent in this process that answers over the real rpc room: regular pods, and branch
//     pods where the kernel has 802.1Q, else in the lab's virtual machine;
//   - containernetworking's ptp and vlan with host-local;
//   - a bare netlink loop that makes the same kernel objects, and an empty process with one gRPC call by the gRPC library:
//     the budget is a multiple of their sum;
//   - an empty process, and one with the same call by the client that aws-cni has in the library's place.
//
// It compares ADD and DEL at several concurrencies, then how ADD grows with the pods of a node, then counts failures.
// Contenders take turns within each round. Everything happens in network namespaces without a name, which end with this
// process. docs/benchmarks.md says how to read it.
//
//	go run ./test/bench [-rounds N] [-pods N] [-growth N] [-reliability RUNS] [-branch auto|native|vm|off] [-json FILE]
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/report"
	"github.com/branchline-cni/branchline/test/bench/series"
)

func main() {
	o, err := parseOptions(os.Args[1:], os.Stderr)
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err = run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("root is needed: it makes network namespaces")
	}
	dir, err := os.MkdirTemp("", "branchline-bench-")
	if err != nil {
		return fmt.Errorf("make a folder for the contenders: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	if o.bins == "" {
		o.bins = filepath.Join(dir, "bin")
		if err := build(ctx, o.bins); err != nil {
			return err
		}
	}
	doc, err := measureAll(ctx, o, dir)
	if len(doc.Places) > 0 { // what was measured before an error is told all the same
		err = errors.Join(err, write(doc, o))
	}
	if err != nil {
		return err
	}
	if n := doc.Failed(); n > 0 {
		return fmt.Errorf("%d runs failed", n)
	}
	return nil
}

func measureAll(ctx context.Context, o options, dir string) (report.Document, error) {
	vlans, err := contender.HasVLANs()
	if err != nil {
		return report.Document{}, err
	}
	here, vm := native, false
	switch {
	case o.inside, o.branch == branchNative, o.branch == branchAuto && vlans:
		if !vlans {
			return report.Document{}, errors.New("branch pods can't be measured here: this kernel has no 802.1Q (module 8021q)")
		}
		here = slices.Concat(native, branched)
		if o.inside {
			here = slices.Concat(virtual, branched)
		}
	case o.branch == branchAuto, o.branch == branchVM:
		vm = true
	}
	name := "native"
	if o.inside {
		name = "vm"
	}
	place, err := measure(ctx, o, name, dir, o.among(here))
	if err != nil {
		return report.Document{}, err
	}
	doc := report.Document{Places: []report.Place{place}}
	if vm && len(o.among(branched)) > 0 {
		inside, err := runInVM(ctx, o, dir)
		if err != nil {
			return doc, fmt.Errorf("branch pods, in the virtual machine: %w", err)
		}
		doc.Places = append(doc.Places, inside.Places...)
	}
	return doc, nil
}

// measure runs all series here.
func measure(ctx context.Context, o options, name, dir string, contenders []string) (report.Place, error) {
	place := report.Place{Name: name, Kernel: kernel(), CPUs: runtime.NumCPU(), Go: runtime.Version(), Pods: o.pods, Rounds: o.rounds}
	with := series.Options{
		Bin: o.bins, Dir: dir, Contenders: contenders, Pods: o.pods, Rounds: o.rounds, Concurrency: o.concurrency, Progress: o.progress,
	}
	cells, err := series.Compare(ctx, with)
	if err != nil {
		return report.Place{}, err
	}
	place.Cells = report.NewCells(cells)
	if o.growth > 0 {
		with.Rounds, with.Contenders = o.growthRounds, o.among([]string{contender.Ours, contender.PTP, contender.Bare})
		points, err := series.Growth(ctx, with, o.growth, growthStep, o.pairs)
		if err != nil {
			return report.Place{}, err
		}
		place.Growth = report.NewPoints(points)
	}
	if o.reliability > 0 {
		r, err := series.Reliably(ctx, with, contender.Ours, o.reliability, o.reliablyPods, o.reliablyAtATime)
		if err != nil {
			return report.Place{}, err
		}
		place.Reliability = report.NewReliability(r)
	}
	return place, nil
}

func write(doc report.Document, o options) error {
	if o.inside || o.json == "-" {
		return doc.WriteJSON(os.Stdout)
	}
	if o.json != "" {
		if err := os.MkdirAll(filepath.Dir(o.json), 0o755); err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
		f, err := os.Create(o.json)
		if err != nil {
			return fmt.Errorf("write the results: %w", err)
		}
		if err := errors.Join(doc.WriteJSON(f), f.Close()); err != nil {
			return err
		}
	}
	return doc.Print(os.Stdout)
}

func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return strings.TrimRight(string(u.Release[:]), "\x00")
}
