package ipamd

import (
	"os"
	"os/exec"
	"testing"

	"github.com/branchline-cni/branchline/test/faults"
)

// TestEachFaultOfTheListStillApplies holds the list to the source: all faults at once are seeded and compiled. Whether the model
// tests see each of them is what `make mutants` shows.
func TestEachFaultOfTheListStillApplies(t *testing.T) {
	text, err := os.ReadFile("testdata/mutants.txt")
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
	for _, f := range all { // one by one: some are in the same place
		source, err := os.ReadFile("../" + f.File)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.Seed(source); err != nil {
			t.Error(err)
		}
	}
	overlay, err := faults.WriteOverlay(t.TempDir(), "..", apart(all)...)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "go", "build", "-overlay", overlay, ".")
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := c.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// apart leaves out those of which another one has changed the place.
func apart(all []faults.Fault) (out []faults.Fault) {
	taken := map[string]bool{"retiring-is-given": true}
	for _, f := range all {
		if !taken[f.Name] {
			out = append(out, f)
		}
	}
	return out
}
