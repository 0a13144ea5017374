//go:build lab

package demo

import (
	"context"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// inLab makes a lab, which ends with the test, for a walk through it. Options.Dir, Progress and Log are set.
func inLab(t *testing.T, ctx context.Context, o lab.Options) *walk {
	t.Helper()
	out := t.Output()
	o.Dir, o.Progress, o.Log = filepath.Join(t.TempDir(), "l"), out, slog.New(slog.NewTextHandler(io.Discard, nil))
	l, err := lab.Up(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := l.Down(ctx); err != nil {
			t.Error(err)
		}
	})
	ev, err := NewEvidence(filepath.Join(t.TempDir(), "evidence"), out, l.BinDir()+":/usr/sbin:/usr/bin:/sbin:/bin")
	if err != nil {
		t.Fatal(err)
	}
	ev.changes = l.Changes
	w := &walk{Evidence: ev, lab: l, began: time.Now(), node: l.Node, small: l.SmallNode}
	if o.OneNode {
		w.small = l.Node
	}
	return w
}

// labStep is a step of a walk in a lab that a test makes.
type labStep struct {
	name, title string
	run         func(context.Context) error
}

// play has the steps done one after the other, and tells what there is to know after a failure.
func (w *walk) play(t *testing.T, ctx context.Context, steps []labStep, explain func(context.Context)) {
	t.Helper()
	for _, step := range steps {
		began := time.Now()
		w.Step(step.name, step.title)
		if err := step.run(ctx); err != nil {
			explain(ctx)
			t.Fatalf("step %s (%s): %v", step.name, step.title, err)
		}
		w.Note("step %s took %.0f s", step.name, time.Since(began).Seconds())
	}
}

func (w *walk) system(argv ...string) []string {
	return append([]string{"kubectl", "-n", "kube-system"}, argv...)
}

// explain shows what a person would look at first, after a failure.
func (w *walk) explain() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	w.diagnose(ctx)
	for _, argv := range [][]string{
		w.system("describe", "pods", "-l", controllerPod), w.system("logs", "-l", controllerPod, "--tail=40"),
		w.system("logs", "-l", controllerPod, "--previous", "--tail=20"),
	} {
		o, err := w.Local(ctx, argv)
		w.Note("%s: %v\n%s", strings.Join(argv, " "), err, o.All())
	}
	logs, err := filepath.Glob(filepath.Join(w.lab.Dir(), "i", "*", "logs", "*.log"))
	if err != nil {
		w.Note("%v", err)
	}
	for _, file := range logs {
		b, err := os.ReadFile(file)
		lines := strings.Split(string(b), "\n")
		w.Note("%s: %v\n%s", file, err, strings.Join(slices.Clone(lines[max(0, len(lines)-12):]), "\n"))
	}
}
