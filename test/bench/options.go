package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/branchline-cni/branchline/test/bench/agent"
	"github.com/branchline-cni/branchline/test/bench/contender"
)

// options are what the command line says.
type options struct {
	rounds, pods int
	concurrency  []int
	only         []string // contenders; empty: all that this machine and the VM can run

	growth, growthRounds, pairs int // growth is in pods; 0: not measured

	reliability                   int // in runs; 0: not measured
	reliablyPods, reliablyAtATime int

	branch                      string
	vmRounds, vmPods, memoryMiB int
	vmConcurrency               []int

	json     string
	bins     string // of executables that are built already; empty: build them
	inside   bool   // this is the part in the VM
	progress io.Writer
}

// Where branch pods are measured.
const (
	branchAuto   = "auto" // here where the kernel has 802.1Q, else in the VM
	branchVM     = "vm"
	branchNative = "native"
	branchOff    = "off"
)

// native and branched are the contenders for regular pods, and those that need 802.1Q; virtual are those of the first
// that the second are set beside in the virtual machine, where everything takes longer.
var (
	native   = []string{contender.Ours, contender.PTP, contender.Bare, contender.OneCall, contender.LeanCall, contender.Empty}
	branched = []string{contender.OursBranch, contender.VLAN}
	virtual  = []string{contender.Ours, contender.Bare, contender.OneCall}
)

// growthStep is the distance of the points at which growth is measured.
const growthStep = 100

// parseOptions reads the command line. What is wrong with it, or -h, was told on w already.
func parseOptions(args []string, w io.Writer) (options, error) {
	o := options{progress: os.Stderr}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(w)
	f.IntVar(&o.rounds, "rounds", 8, "rounds of the comparison, each with all contenders")
	f.IntVar(&o.pods, "pods", 64, "pods of a phase")
	concurrency := f.String("concurrency", "1,8,32", "how many executables run at a time")
	only := f.String("only", "", "contenders, separated by commas: "+strings.Join(append(slices.Clone(native), branched...), ", "))
	f.IntVar(&o.growth, "growth", 700, "measure how ADD grows up to this number of pods; 0: don't")
	f.IntVar(&o.growthRounds, "growth-rounds", 3, "rounds of that, each with new nodes")
	f.IntVar(&o.pairs, "growth-pairs", 15, "ADDs at each of its points")
	f.IntVar(&o.reliability, "reliability", 10, "runs of the count of failures (100 for the claim that none fails); 0: don't")
	f.IntVar(&o.reliablyPods, "reliability-pods", 200, "pods of such a run")
	f.IntVar(&o.reliablyAtATime, "reliability-concurrency", 32, "how many executables run at a time there")
	f.StringVar(&o.branch, "branch", branchAuto, "where branch pods are measured: auto (here where the kernel has 802.1Q, else in a virtual machine), native, vm, off")
	f.IntVar(&o.vmRounds, "vm-rounds", 1, "rounds in the virtual machine")
	f.IntVar(&o.vmPods, "vm-pods", 32, "pods of a phase there")
	vmConcurrency := f.String("vm-concurrency", "1,8,32", "how many executables run at a time there")
	f.IntVar(&o.memoryMiB, "vm-memory", 2560, "its memory, MiB")
	f.StringVar(&o.json, "json", "", "file for the results as JSON (- for stdout, in the place of the tables)")
	f.StringVar(&o.bins, "bins", "", "folder of executables that are built already: "+strings.Join(append([]string{contender.Ours}, slices.Sorted(maps.Keys(contender.Programs()))...), ", "))
	f.BoolVar(&o.inside, "inside", false, "run as the part in the virtual machine: regular and branch pods, JSON on stdout")
	if err := f.Parse(args); err != nil {
		return options{}, err
	}
	var err error
	o.concurrency, err = parseConcurrency("concurrency", *concurrency)
	if err == nil {
		o.vmConcurrency, err = parseConcurrency("vm-concurrency", *vmConcurrency)
	}
	if err == nil {
		o.only, err = parseOnly(*only)
	}
	if err == nil {
		err = o.check(f.Args())
	}
	if err != nil {
		fmt.Fprintln(w, "bench:", err)
	}
	return o, err
}

func (o options) check(rest []string) error {
	var errs []error
	for _, n := range []struct {
		name             string
		value, low, high int
	}{
		{"rounds", o.rounds, 1, 10_000}, {"pods", o.pods, 1, 1000}, {"vm-rounds", o.vmRounds, 1, 10_000}, {"vm-pods", o.vmPods, 1, agent.MaxBranch},
		{"growth", o.growth, 0, 10_000}, {"growth-rounds", o.growthRounds, 1, 1000}, {"growth-pairs", o.pairs, 1, 10_000},
		{"reliability", o.reliability, 0, 1_000_000}, {"reliability-pods", o.reliablyPods, 1, 1000},
		{"reliability-concurrency", o.reliablyAtATime, 1, 1000}, {"vm-memory", o.memoryMiB, 512, 1 << 20},
	} {
		if n.value < n.low || n.value > n.high {
			errs = append(errs, fmt.Errorf("-%s %d is not within %d and %d", n.name, n.value, n.low, n.high))
		}
	}
	if !slices.Contains([]string{branchAuto, branchNative, branchVM, branchOff}, o.branch) {
		errs = append(errs, fmt.Errorf("-branch %q is not auto, native, vm or off", o.branch))
	}
	if o.inside && o.bins == "" {
		errs = append(errs, errors.New("-inside wants -bins"))
	}
	if len(rest) > 0 {
		errs = append(errs, fmt.Errorf("no arguments are taken beside the flags, got %q", rest))
	}
	return errors.Join(errs...)
}

func parseConcurrency(flag, text string) ([]int, error) {
	var out []int
	for field := range strings.SplitSeq(text, ",") {
		n, err := strconv.Atoi(strings.TrimSpace(field))
		if err != nil || n < 1 || n > 1000 || slices.Contains(out, n) {
			return nil, fmt.Errorf("-%s %q is not a list of different numbers from 1 to 1000", flag, text)
		}
		out = append(out, n)
	}
	return out, nil
}

func parseOnly(text string) ([]string, error) {
	if text == "" {
		return nil, nil
	}
	var out []string
	for field := range strings.SplitSeq(text, ",") {
		name := strings.TrimSpace(field)
		if !slices.Contains(native, name) && !slices.Contains(branched, name) {
			return nil, fmt.Errorf("-only: there is no contender %q", name)
		}
		out = append(out, name)
	}
	return out, nil
}

// among is what of the names -only leaves.
func (o options) among(names []string) []string {
	if len(o.only) == 0 {
		return names
	}
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !slices.Contains(o.only, n) })
}
