package main

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

func TestFaultsAreReadAndSeeded(t *testing.T) {
	list := "# for people\n-- one: ../x.go, first TestB\na\n\tb\n=>\n\tc\n\n# about two\n-- two: y.go\ngone\n=>\n"
	faults, err := parseFaults(list)
	if err != nil || len(faults) != 2 {
		t.Fatalf("%+v, %v", faults, err)
	}
	if m := faults[0]; m != (fault{"one", "../x.go", "TestB", "a\n\tb", "\tc"}) {
		t.Errorf("%+v", m)
	}
	if got := faults[0].order([]string{"^TestA"}); !slices.Equal(got, []string{"TestB", "^TestA"}) {
		t.Errorf("%q", got)
	}
	if got, err := faults[1].seed([]byte("it is gone now")); err != nil || string(got) != "it is  now" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAFaultThatNoLongerAppliesIsAnError(t *testing.T) {
	m := fault{name: "one", file: "x.go", old: "a", new: "b"}
	for _, source := range []string{"", "none", "a and a"} {
		if _, err := m.seed([]byte(source)); (err == nil) != (strings.Count(source, "a") == 1) {
			t.Errorf("%q: %v", source, err)
		}
	}
	for _, list := range []string{"", "-- one\na\n=>\nb", "-- one: x\na", "-- one: x\n=>\nb", "-- one: x\na\n=>\n-- one: x\na\n=>\n", "-- a/b: x\na\n=>\n"} {
		if out, err := parseFaults(list); err == nil {
			t.Errorf("%q is read as %+v", list, out)
		}
	}
}

// TestEachFaultOfTheListStillApplies holds the list to the source: all faults at once are seeded and compiled.
func TestEachFaultOfTheListStillApplies(t *testing.T) {
	const list = "../../plugins/eni/testdata/mutants.txt"
	text, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	faults, err := parseFaults(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if len(faults) < 10 {
		t.Errorf("%d faults are not enough", len(faults))
	}
	dir := t.TempDir()
	overlay, err := writeOverlay(dir, "../..", faults...)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, "../../plugins/datapath", "../../plugins/eni")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}
