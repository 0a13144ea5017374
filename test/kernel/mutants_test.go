package main

import (
	"os"
	"os/exec"
	"slices"
	"testing"

	"github.com/branchline-cni/branchline/test/faults"
)

func TestWhatTheListNamesFirstIsTriedFirst(t *testing.T) {
	if got := order(faults.Fault{First: "TestB"}, []string{"^TestA"}); !slices.Equal(got, []string{"TestB", "^TestA"}) {
		t.Errorf("%q", got)
	}
}

// TestEachFaultOfTheListStillApplies holds the list to the source: all faults at once are seeded and compiled.
func TestEachFaultOfTheListStillApplies(t *testing.T) {
	const list = "../../plugins/eni/testdata/mutants.txt"
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	all, err := faults.Parse(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(all) < 10 {
		t.Errorf("%d faults are not enough", len(all))
	}
	dir := t.TempDir()
	overlay, err := faults.WriteOverlay(dir, "../..", all...)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "../../plugins/datapath", "../../plugins/eni")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
