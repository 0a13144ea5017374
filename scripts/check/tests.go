package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// raceRooms are the rooms whose tests run with the race detector: what ships.
// The lab's own run without it, which halves the time.
var raceRooms = []string{"api", "aws", "cmd", "controller", "ipamd", "logfile", "plugins", "policy", "rpc"}

func unit(ctx context.Context, w *work) error {
	list, err := w.output(ctx, "go", "list", "./...")
	if err != nil {
		return err
	}
	var race, plain []string
	for _, pkg := range strings.Fields(list) {
		room, _, _ := strings.Cut(strings.TrimPrefix(pkg, modulePrefix), "/")
		if slices.Contains(raceRooms, room) {
			race = append(race, pkg)
		} else {
			plain = append(plain, pkg)
		}
	}
	// No cached results: a test that passed yesterday says nothing of today's kernel.
	args := []string{"go", "test", "-json", "-count=1", "-timeout", "10m"}
	var errs []error
	if len(race) > 0 {
		errs = append(errs, w.command(ctx, []string{"CGO_ENABLED=1"}, w.goTest, append(append(args, "-race"), race...)...))
	}
	if len(plain) > 0 {
		errs = append(errs, w.command(ctx, nil, w.goTest, append(args, plain...)...))
	}
	return errors.Join(errs...)
}

// stripped leaves out what only a debugger reads, as go test does by itself where it keeps no executable: it is half of the
// time that linking takes. Stacks have their names and lines without it.
const stripped = "-ldflags=-s -w"

// inputs is how many inputs a fuzz target gets from its one worker: what takes a
// second, or four for what a runtime hands to the CNI executable. With a time instead of a number, Go
// sometimes fails a target for the deadline itself ("context deadline exceeded").
func inputs(dir string) string {
	if dir == "plugins/eni" {
		return "30000x"
	}
	return "5000x"
}

// fuzz runs each fuzz target. A package's targets share one executable: linking takes longer than most of them run.
func fuzz(ctx context.Context, w *work) error {
	targets, err := findTests(w.root, "", "Fuzz")
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		return errors.New("no fuzz test was found")
	}
	cache, err := w.output(ctx, "go", "env", "GOCACHE")
	if err != nil {
		return err
	}
	bins := filepath.Join(w.tmp, "fuzz")
	if err := os.MkdirAll(bins, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, t := range targets {
		bin := filepath.Join(bins, strings.ReplaceAll(t.dir, "/", "__")+".test")
		if err := w.command(ctx, nil, nil, "go", "test", "-c", stripped, "-fuzz=.", "-o", bin, "./"+t.dir); err != nil {
			errs = append(errs, err)
			w.tests.count("build-fail", t.dir, "")
			continue
		}
		// The folder in which go test keeps the inputs that earlier runs found interesting.
		found := filepath.Join(strings.TrimSpace(cache), "fuzz", modulePrefix+t.dir)
		for _, name := range t.names {
			if ctx.Err() != nil {
				return errors.Join(append(errs, context.Cause(ctx))...)
			}
			err := w.commandIn(ctx, filepath.Join(w.root, t.dir), nil, nil, bin, "-test.run=^$", "-test.fuzz=^"+name+"$",
				"-test.fuzztime="+inputs(t.dir), "-test.parallel=1", "-test.fuzzcachedir="+found, "-test.timeout=5m")
			action := "pass"
			if err != nil {
				action = "fail"
				errs = append(errs, err)
			}
			w.tests.count(action, t.dir, name)
		}
	}
	return errors.Join(errs...)
}

// kernel compiles the kernel tests here and runs all of them in one virtual
// machine. A test binary is called after its package, with __ for each slash.
func kernel(ctx context.Context, w *work) error {
	pkgs, err := findTests(w.root, "_kernel_test.go", "Test")
	if err != nil {
		return err
	}
	if len(pkgs) == 0 {
		return errors.New("no package has kernel tests (*_kernel_test.go)")
	}
	bins := filepath.Join(w.tmp, "kernel")
	if err := os.MkdirAll(bins, 0o755); err != nil {
		return err
	}
	var errs []error
	for _, p := range pkgs {
		out := filepath.Join(bins, strings.ReplaceAll(p.dir, "/", "__")+".test")
		if err := w.command(ctx, []string{"CGO_ENABLED=0"}, nil, "go", "test", "-c", stripped, "-tags", "kernel", "-o", out, "./"+p.dir); err != nil {
			errs = append(errs, err)
			w.tests.count("build-fail", p.dir, "")
			continue
		}
		// Tests read their testdata from their package's folder.
		if err := os.WriteFile(out+".dir", []byte(filepath.Join(w.root, p.dir)), 0o644); err != nil {
			return err
		}
	}
	var at position
	errs = append(errs, w.command(ctx, nil, func(l string) { w.verbose(&at, l) }, "go", "run", "./test/kernel", "-v", "-cpus", "1", "-bins", bins))
	if w.tests.passed == 0 {
		errs = append(errs, errors.New("no kernel test passed"))
	}
	return errors.Join(errs...)
}

// tagged runs the tests behind one build tag: those in files with the suffix and
// no others of their packages, which ran already. which says of a folder's test whether it is meant.
func (w *work) tagged(ctx context.Context, tag string, env []string, which func(dir, test string) bool) error {
	pkgs, err := findTests(w.root, "_"+tag+"_test.go", "Test")
	if err != nil {
		return err
	}
	for i, p := range pkgs {
		pkgs[i].names = slices.DeleteFunc(p.names, func(test string) bool { return !which(p.dir, test) })
	}
	pkgs = slices.DeleteFunc(pkgs, func(p testPackage) bool { return len(p.names) == 0 })
	if len(pkgs) == 0 {
		return fmt.Errorf("no package has %s tests (*_%s_test.go)", tag, tag)
	}
	var errs []error
	for _, p := range pkgs {
		if ctx.Err() != nil {
			return errors.Join(append(errs, context.Cause(ctx))...)
		}
		quoted := make([]string, len(p.names))
		for i, n := range p.names {
			quoted[i] = regexp.QuoteMeta(n)
		}
		errs = append(errs, w.command(ctx, env, w.goTest, "go", "test", "-json", "-count=1", "-timeout", "25m", "-tags", tag,
			"-run", "^("+strings.Join(quoted, "|")+")$", "./"+p.dir))
	}
	if w.tests.passed == 0 {
		errs = append(errs, fmt.Errorf("no %s test passed", tag))
	}
	return errors.Join(errs...)
}

// envtest gives controller-runtime's test environment the executables that it
// looks for, all of them our one Kubernetes.
func envtest(ctx context.Context, w *work) error {
	hyperkube, err := w.cache.Hyperkube(ctx)
	if err != nil {
		return err
	}
	assets := filepath.Join(w.tmp, "envtest")
	if err := os.MkdirAll(assets, 0o755); err != nil {
		return err
	}
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		if err := os.Symlink(hyperkube, filepath.Join(assets, name)); err != nil {
			return err
		}
	}
	return w.tagged(ctx, "envtest", []string{"KUBEBUILDER_ASSETS=" + assets}, func(string, string) bool { return true })
}

// Lab tests are of three parts: the node agent's, which have an API server and nothing else of a cluster; the one whose cluster has an
// emulated machine, as the walk-through has; and all others.
const (
	agentRoom    = "ipamd"
	emulatedRoom = "lab/demo"
	emulatedTest = "TestAnIPv6Cluster"
)

func agentTests(ctx context.Context, w *work) error {
	return w.tagged(ctx, "lab", nil, func(dir, _ string) bool { return dir == agentRoom })
}

func ipv6Tests(ctx context.Context, w *work) error {
	return w.tagged(ctx, "lab", nil, emulated)
}

func labTests(ctx context.Context, w *work) error {
	return w.tagged(ctx, "lab", nil, func(dir, test string) bool { return dir != agentRoom && !emulated(dir, test) })
}

func emulated(dir, test string) bool { return dir == emulatedRoom && test == emulatedTest }

func demo(ctx context.Context, w *work) error {
	err := w.command(ctx, nil, w.claim, "go", "run", "./cmd/vpclab", "demo", "--kills", "--evidence", filepath.Join(w.logs, "evidence"))
	if err == nil && w.tests.passed == 0 {
		err = errors.New("the walk-through showed no claim")
	}
	return err
}
