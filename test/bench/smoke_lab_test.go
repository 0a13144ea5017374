//go:build lab

package main

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/test/bench/contender"
	"github.com/branchline-cni/branchline/test/bench/report"
	"github.com/branchline-cni/branchline/test/bench/world"
)

// TestTheBenchmarkInSmall builds once for all of its parts.
func TestTheBenchmarkInSmall(t *testing.T) {
	o := tiny(t)
	t.Run("contenders", func(t *testing.T) { everyContenderIsMeasured(t, o) })
	t.Run("floor", func(t *testing.T) { theBareLoopMakesWhatTheExecutableMakes(t, o) })
	t.Run("interrupt", func(t *testing.T) { anInterruptedRunEndsAndKeepsNothing(t, o) })
}

func tiny(t *testing.T) options {
	t.Helper()
	o, err := parseOptions([]string{"-rounds", "1", "-pods", "2", "-concurrency", "1,2", "-growth", "3", "-growth-rounds", "1", "-growth-pairs", "2",
		"-reliability", "1", "-reliability-pods", "4", "-reliability-concurrency", "4", "-vm-rounds", "1", "-vm-pods", "2", "-vm-concurrency", "2"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	o.bins = filepath.Join(t.TempDir(), "bin")
	if err := build(t.Context(), o.bins); err != nil {
		t.Fatal(err)
	}
	return o
}

// everyContenderIsMeasured runs all of the benchmark with small numbers, the virtual machine included where this kernel
// has no 802.1Q.
func everyContenderIsMeasured(t *testing.T, o options) {
	files := nstest.Files(t)
	doc, err := measureAll(t.Context(), o, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, p := range doc.Places {
		for _, c := range p.Cells {
			if c.Failed > 0 || c.P50 <= 0 {
				t.Errorf("%s: %+v", p.Name, c)
			}
			if c.Runs > 0 && (c.CPU <= 0 || c.PeakKiB < 500) {
				t.Errorf("%s: no CPU or memory: %+v", p.Name, c)
			}
			seen[c.Contender] = true
		}
	}
	for _, name := range append(append([]string{report.Basis}, native...), branched...) {
		if !seen[name] {
			t.Errorf("%s was not measured", name)
		}
	}
	first := doc.Places[0]
	if len(first.Growth) != 6 || first.Growth[5].ToFirst.Rounds != 1 {
		t.Errorf("growth: %+v", first.Growth)
	}
	if r := first.Reliability; r == nil || r.FailedADDs+r.FailedDELs+r.LinksLeft != 0 {
		t.Errorf("reliability: %+v", r)
	}
	if now := nstest.Files(t); now > files {
		t.Errorf("%d open files, %d before: namespaces are kept", now, files)
	}
}

// theBareLoopMakesWhatTheExecutableMakes holds the floor to the plan: it would be a floor no more if it made less, or
// something else.
func theBareLoopMakesWhatTheExecutableMakes(t *testing.T, o options) {
	var host, pod [][]string
	for _, name := range []string{contender.Ours, contender.Bare} {
		h, p := nstest.New(t), nstest.New(t)
		space, err := world.Open(h.Path())
		if err != nil {
			t.Fatal(err)
		}
		c, err := contender.New(name, o.bins, t.TempDir(), space)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			c.Close()
			world.Close([]*world.Namespace{space})
		})
		before := h.Snapshot(t)
		inv, err := c.Add(contender.Pod{N: 3, ContainerID: "sandbox", Netns: p.Path()})
		if err != nil {
			t.Fatal(err)
		}
		stdout := execute(t, space, inv)
		host, pod = append(host, h.Snapshot(t)), append(pod, p.Snapshot(t))
		if len(host[0]) <= len(before) {
			t.Fatalf("%s made nothing", name)
		}
		if inv, err = c.Del(contender.Pod{N: 3, ContainerID: "sandbox", Netns: p.Path()}, stdout); err != nil {
			t.Fatal(err)
		}
		execute(t, space, inv)
		if diff := cmp.Diff(before, h.Snapshot(t)); diff != "" {
			t.Errorf("left by %s:\n%s", name, diff)
		}
	}
	if diff := cmp.Diff(host[0], host[1]); diff != "" {
		t.Errorf("on the host (-aws-cni +bare loop), adapt test/bench/bare:\n%s", diff)
	}
	if diff := cmp.Diff(pod[0], pod[1]); diff != "" {
		t.Errorf("in the pod (-aws-cni +bare loop), adapt test/bench/bare:\n%s", diff)
	}
}

func anInterruptedRunEndsAndKeepsNothing(t *testing.T, o options) {
	o.rounds, o.pods = 10_000, 8
	files := nstest.Files(t)
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	// The second round begins when executables have run and more are about to.
	second := make(chan struct{})
	o.progress = lineWriter(func(line string) {
		if strings.HasPrefix(line, "round 2 ") {
			close(second)
		}
	})
	done := make(chan error, 1)
	go func() {
		_, err := measure(ctx, o, "native", dir, o.among(native))
		done <- err
	}()
	select {
	case <-second:
	case err := <-done:
		t.Fatalf("ended by itself: %v", err)
	case <-time.After(time.Minute):
		t.Fatal("nothing runs")
	}
	cancel()
	select {
	case err := <-done:
		if err == nil {
			t.Error("an interrupted run calls itself complete")
		}
	case <-time.After(20 * time.Second):
		t.Fatal("still running")
	}
	if now := nstest.Files(t); now > files {
		t.Errorf("%d open files, %d before: namespaces are kept", now, files)
	}
}

// execute runs an executable in a namespace and returns what it printed.
func execute(t *testing.T, in *world.Namespace, inv contender.Invocation) []byte {
	t.Helper()
	var out []byte
	err := in.Do(func() (err error) {
		c := exec.CommandContext(t.Context(), inv.Argv[0], inv.Argv[1:]...)
		c.Env, c.Stdin = inv.Env, bytes.NewReader(inv.Stdin)
		out, err = c.Output()
		return err
	})
	if err != nil {
		t.Fatalf("%s: %v: %s", inv.Argv[0], err, out)
	}
	return out
}

type lineWriter func(string)

func (w lineWriter) Write(b []byte) (int, error) {
	w(string(b))
	return len(b), nil
}
