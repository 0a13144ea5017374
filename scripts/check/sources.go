package main

import (
	"bytes"
	"cmp"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// longFile is where a file wants to be two.
const longFile = 400

// goFiles lists the checkout's Go files but the generated ones, relative to root.
func goFiles(root string) ([]string, error) {
	var files []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "out" || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		name := d.Name()
		if !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, ".pb.go") || strings.HasPrefix(name, "zz_generated") {
			return nil
		}
		rel, err := filepath.Rel(root, path)
		files = append(files, rel)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("list the Go files: %w", err)
	}
	return files, nil
}

func longFiles(root string, files []string) ([]string, error) {
	var long []string
	for _, f := range files {
		b, err := os.ReadFile(filepath.Join(root, f))
		if err != nil {
			return nil, fmt.Errorf("count the lines of %s: %w", f, err)
		}
		if n := bytes.Count(b, []byte("\n")); n > longFile {
			long = append(long, fmt.Sprintf("long: %s has %d lines", f, n))
		}
	}
	return long, nil
}

// testPackage is a folder and its test functions.
type testPackage struct {
	dir   string // relative to the checkout, with slashes
	names []string
}

// findTests finds the functions called prefix... in the test files that end in
// suffix, and with an empty suffix in all test files.
func findTests(root, suffix, prefix string) ([]testPackage, error) {
	files, err := goFiles(root)
	if err != nil {
		return nil, err
	}
	byDir := map[string][]string{}
	for _, f := range files {
		if !strings.HasSuffix(f, "_test.go") || !strings.HasSuffix(f, suffix) {
			continue
		}
		tree, err := parser.ParseFile(token.NewFileSet(), filepath.Join(root, f), nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, fmt.Errorf("look for tests: %w", err)
		}
		for _, d := range tree.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil || !strings.HasPrefix(fn.Name.Name, prefix) || fn.Name.Name == "TestMain" || len(fn.Type.Params.List) != 1 {
				continue
			}
			dir := filepath.ToSlash(filepath.Dir(f))
			byDir[dir] = append(byDir[dir], fn.Name.Name)
		}
	}
	var pkgs []testPackage
	for dir, names := range byDir {
		slices.Sort(names)
		pkgs = append(pkgs, testPackage{dir, names})
	}
	slices.SortFunc(pkgs, func(a, b testPackage) int { return cmp.Compare(a.dir, b.dir) })
	return pkgs, nil
}
