package main

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

func TestCgroupsOfInstancesThatAreOverGo(t *testing.T) {
	root := t.TempDir()
	for _, d := range []string{"branchline-i-1/pods/one", "memory/branchline-i-1/pods", "memory/branchline-i-2/pods", "branchline-i-3", "system.slice", "memory/other"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "memory/branchline-i-2/pods/cgroup.procs"), []byte("17\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	all := instanceCgroups(root)
	if len(all) != 4 {
		t.Fatalf("%q", all)
	}
	left := []string{filepath.Join(root, "branchline-i-3")} // there before
	if n := removeIdle(slices.DeleteFunc(all, func(d string) bool { return slices.Contains(left, d) })); n != 2 {
		t.Errorf("%d went", n)
	}
	want := append(left, filepath.Join(root, "memory/branchline-i-2"))
	if got := instanceCgroups(root); !slices.Equal(got, want) {
		t.Errorf("%q is there, want %q", got, want)
	}
}
