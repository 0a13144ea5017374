package faults

import (
	"strings"
	"testing"
)

func TestFaultsAreReadAndSeeded(t *testing.T) {
	list := "# for people\n-- one: ../x.go, first TestB\na\n\tb\n=>\n\tc\n\n# about two\n-- two: y.go\ngone\n=>\n"
	faults, err := Parse(list)
	if err != nil || len(faults) != 2 {
		t.Fatalf("%+v, %v", faults, err)
	}
	if m := faults[0]; m != (Fault{"one", "../x.go", "TestB", "a\n\tb", "\tc"}) {
		t.Errorf("%+v", m)
	}
	if got, err := faults[1].Seed([]byte("it is gone now")); err != nil || string(got) != "it is  now" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAFaultThatNoLongerAppliesIsAnError(t *testing.T) {
	m := Fault{Name: "one", File: "x.go", Old: "a", New: "b"}
	for _, source := range []string{"", "none", "a and a"} {
		if _, err := m.Seed([]byte(source)); (err == nil) != (strings.Count(source, "a") == 1) {
			t.Errorf("%q: %v", source, err)
		}
	}
	for _, list := range []string{"", "-- one\na\n=>\nb", "-- one: x\na", "-- one: x\n=>\nb", "-- one: x\na\n=>\n-- one: x\na\n=>\n", "-- a/b: x\na\n=>\n"} {
		if out, err := Parse(list); err == nil {
			t.Errorf("%q is read as %+v", list, out)
		}
	}
}
