package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
)

// testBinary is a compiled test of one package.
type testBinary struct {
	pkg  string // import path, or the file's name
	path string
	dir  string // where it runs: the package's folder, for its testdata
}

// goPackage is what `go list -json` tells of a package.
type goPackage struct {
	ImportPath, Dir           string
	TestGoFiles, XTestGoFiles []string
}

func (p goPackage) hasKernelTests() bool {
	return slices.ContainsFunc(append(p.TestGoFiles, p.XTestGoFiles...), func(f string) bool { return strings.HasSuffix(f, "_kernel_test.go") })
}

// parsePackages reads the JSON objects that `go list -json` writes one after the other.
func parsePackages(r io.Reader) ([]goPackage, error) {
	var out []goPackage
	d := json.NewDecoder(r)
	for {
		var p goPackage
		switch err := d.Decode(&p); {
		case errors.Is(err, io.EOF):
			return out, nil
		case err != nil:
			return nil, fmt.Errorf("read go list's answer: %w", err)
		}
		out = append(out, p)
	}
}

// binaryName makes one file name of an import path.
func binaryName(pkg string) string { return strings.ReplaceAll(pkg, "/", "_") + ".test" }

// compile builds the kernel tests of the packages that patterns name into dir.
func compile(ctx context.Context, patterns []string, dir string) ([]testBinary, error) {
	var stderr bytes.Buffer
	list := exec.CommandContext(ctx, "go", append([]string{"list", "-tags", "kernel", "-json=ImportPath,Dir,TestGoFiles,XTestGoFiles", "--"}, patterns...)...)
	list.Stderr = &stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list %s: %w\n%s", strings.Join(patterns, " "), err, stderr.Bytes())
	}
	pkgs, err := parsePackages(bytes.NewReader(out))
	if err != nil {
		return nil, err
	}
	pkgs = slices.DeleteFunc(pkgs, func(p goPackage) bool { return !p.hasKernelTests() })
	if len(pkgs) == 0 {
		return nil, fmt.Errorf("no package of %s has a *_kernel_test.go", strings.Join(patterns, " "))
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	var tests []testBinary
	for _, p := range pkgs {
		t := testBinary{pkg: p.ImportPath, path: filepath.Join(dir, binaryName(p.ImportPath)), dir: p.Dir}
		fmt.Fprintln(os.Stderr, "compile", p.ImportPath)
		c := exec.CommandContext(ctx, "go", "test", "-c", "-ldflags=-s -w", "-tags", "kernel", "-o", t.path, p.ImportPath)
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		c.Stderr, c.Stdout = os.Stderr, os.Stderr
		if err := c.Run(); err != nil {
			return nil, fmt.Errorf("compile tests of %s: %w", p.ImportPath, err)
		}
		tests = append(tests, t)
	}
	return tests, nil
}

// What tells a test binary where the CNI executable is, built as it ships, with the other executables of the chain beside
// it; where the command is that harms it at its system calls; and how much more than usual it is to try (see the command's flag -soak).
const (
	executableVariable = "BRANCHLINE_AWS_CNI"
	harmVariable       = "BRANCHLINE_HARM"
	soakVariable       = "BRANCHLINE_SOAK"
)

// awsCNI is the executable that the tests are about.
const awsCNI = product.Module + "/cmd/aws-cni"

// collectExecutables puts the CNI executables into dir, under the names that they have on a node, and returns the path
// of aws-cni. They are those of the cache, which the lab's nodes have, too.
func collectExecutables(ctx context.Context, cache *artifacts.Cache, dir string) (path string, err error) {
	packages := map[string]string{}
	for _, name := range product.NodePlugins() {
		packages[name] = "./cmd/" + name
	}
	for _, p := range product.CorePlugins() {
		packages[p.Name] = p.Package
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	for _, name := range slices.Sorted(maps.Keys(packages)) {
		built, err := cache.Go(ctx, name, packages[name], "")
		if err != nil {
			return "", fmt.Errorf("build the CNI executable %s: %w", name, err)
		}
		b, err := os.ReadFile(built)
		if err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o755); err != nil {
			return "", err
		}
	}
	return filepath.Join(dir, "aws-cni"), nil
}

// buildExecutable builds a CNI executable as it ships, but for what flags change.
func buildExecutable(ctx context.Context, path, pkg string, flags ...string) error {
	name := filepath.Base(path)
	fmt.Fprintln(os.Stderr, "build", name)
	args := append([]string{"build", "-trimpath", "-tags", product.Tags, "-o", path}, flags...)
	c := exec.CommandContext(ctx, "go", append(args, pkg)...)
	c.Env = append(os.Environ(), "CGO_ENABLED=0")
	c.Stderr, c.Stdout = os.Stderr, os.Stderr
	if err := c.Run(); err != nil {
		return fmt.Errorf("build the CNI executable %s: %w", name, err)
	}
	return nil
}

// listBinaries finds the test binaries in dir. Beside NAME.test a file NAME.test.dir may name the folder to run it in.
func listBinaries(dir string) ([]testBinary, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.test"))
	if err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, fmt.Errorf("no *.test in %s", dir)
	}
	var tests []testBinary
	for _, f := range files {
		t := testBinary{pkg: strings.TrimSuffix(filepath.Base(f), ".test"), path: f, dir: dir}
		b, err := os.ReadFile(f + ".dir")
		if err == nil {
			t.dir = strings.TrimSpace(string(b))
		} else if !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		tests = append(tests, t)
	}
	return tests, nil
}
