package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

var (
	namedTest = regexp.MustCompile("`((?:Test|Fuzz)[A-Z0-9][A-Za-z0-9_]*)`")
	rowTest   = regexp.MustCompile(`^TestP[0-9]+[A-Z]`)
)

// documentedTests compares the documents with the tests: each test that a document names exists, and each test that
// plays a row of the table of known pains is named there.
func documentedTests(root string) error {
	exist := map[string]bool{}
	for _, prefix := range []string{"Test", "Fuzz"} {
		pkgs, err := findTests(root, "", prefix)
		if err != nil {
			return err
		}
		for _, p := range pkgs {
			for _, n := range p.names {
				exist[n] = true
			}
		}
	}
	docs, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		return fmt.Errorf("list the documents: %w", err)
	}
	var wrong []string
	named := map[string]bool{}
	for _, d := range append(docs, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(d)
		if err != nil {
			return fmt.Errorf("look for the names of tests: %w", err)
		}
		for _, m := range namedTest.FindAllStringSubmatch(string(text), -1) {
			if named[m[1]] = true; !exist[m[1]] {
				wrong = append(wrong, fmt.Sprintf("%s names %s, which is no test", filepath.Base(d), m[1]))
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(exist)) {
		if rowTest.MatchString(n) && !named[n] {
			wrong = append(wrong, n+" plays a row of the known pains and docs/architecture.md does not name it")
		}
	}
	if len(wrong) > 0 {
		return fmt.Errorf("documents and tests differ: %s", strings.Join(wrong, "; "))
	}
	return nil
}
