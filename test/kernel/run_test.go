package main

import (
	"slices"
	"strings"
	"testing"
)

const verbose = `=== RUN   TestA
--- PASS: TestA (0.00s)
=== RUN   TestB
    --- FAIL: TestB/sub (0.00s)
        x.go:1: --- PASS: TestFake (0.00s)
--- FAIL: TestB (0.01s)
--- SKIP: TestC (0.00s)
FAIL
`

func TestVerdictsAreReadHoweverTheOutputIsCut(t *testing.T) {
	for size := 1; size <= len(verbose); size++ {
		r := &results{}
		for rest := verbose; rest != ""; {
			n := min(size, len(rest))
			if _, err := r.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if r.passed != 1 || !slices.Equal(r.failed, []string{"TestB", "TestC (skipped itself)"}) || r.all.String() != verbose {
			t.Fatalf("cut to %d bytes: %d passed, failed %v", size, r.passed, r.failed)
		}
	}
}

func TestNothingRunIsNoSuccess(t *testing.T) {
	if (tally{packages: 1}).ok() {
		t.Error("no test ran, yet all is well")
	}
}

func TestPackagesWithKernelTestsAreFound(t *testing.T) {
	pkgs, err := parsePackages(strings.NewReader(`{"ImportPath":"m/a","TestGoFiles":["a_kernel_test.go"]}
{"ImportPath":"m/b","TestGoFiles":["b_test.go"]}{"ImportPath":"m/c","XTestGoFiles":["c_kernel_test.go"]}`))
	if err != nil || len(pkgs) != 3 || !pkgs[0].hasKernelTests() || pkgs[1].hasKernelTests() || !pkgs[2].hasKernelTests() {
		t.Errorf("%+v, %v", pkgs, err)
	}
	if _, err := parsePackages(strings.NewReader("{")); err == nil {
		t.Error("a cut-off answer was accepted")
	}
	if binaryName("m/a") == binaryName("m/b") {
		t.Error("two packages share a file name")
	}
}
