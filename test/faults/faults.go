// Package faults reads lists of faults that tests must see, and has go build compile sources with them (-overlay), the checkout
// staying as it is. It runs no test.
package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Fault is one piece of one source file, and what is there in its place.
type Fault struct {
	Name     string
	File     string // relative to the checkout
	First    string // pattern of the test that is tried first; "": the usual one
	Old, New string
}

// Parse reads a list of faults. Lines that begin with # are for people. Which test is tried first need not be said.
//
//	-- name: path/of/file.go, first pattern/of/the/test
//	what is there
//	=>
//	what is there instead, which may be nothing
func Parse(list string) ([]Fault, error) {
	var out []Fault
	names := map[string]bool{}
	for i, part := range strings.Split("\n"+list, "\n-- ") {
		if i == 0 {
			continue
		}
		head, body, _ := strings.Cut(part, "\n")
		name, file, ok := strings.Cut(head, ": ")
		file, first, _ := strings.Cut(file, ", first ")
		if !ok || name == "" || strings.ContainsAny(name, "/. ") || names[name] {
			return nil, fmt.Errorf("fault %d: %q is no new name with a file", i, head)
		}
		names[name] = true
		var lines []string
		for line := range strings.Lines(body) {
			if !strings.HasPrefix(line, "#") {
				lines = append(lines, strings.TrimSuffix(line, "\n"))
			}
		}
		old, changed, ok := strings.Cut("\n"+strings.Join(lines, "\n")+"\n", "\n=>\n")
		if old = strings.Trim(old, "\n"); !ok || old == "" {
			return nil, fmt.Errorf("fault %s: no line => after what is there", name)
		}
		out = append(out, Fault{name, file, first, old, strings.Trim(changed, "\n")})
	}
	if len(out) == 0 {
		return nil, errors.New("no fault is in the list")
	}
	return out, nil
}

// Seed is the source with the fault. One that is not to be found any more, or in several places, is an error: the list
// would prove nothing.
func (f Fault) Seed(source []byte) ([]byte, error) {
	if n := bytes.Count(source, []byte(f.Old)); n != 1 {
		return nil, fmt.Errorf("fault %s no longer applies: what it replaces is %d times in %s, want once: bring the list up to date", f.Name, n, f.File)
	}
	return bytes.Replace(source, []byte(f.Old), []byte(f.New), 1), nil
}

// WriteOverlay writes, into dir, the sources with the faults and the file for go build's -overlay, which has them compiled
// in the place of the ones in the checkout.
func WriteOverlay(dir, checkout string, faults ...Fault) (path string, err error) {
	if checkout, err = filepath.Abs(checkout); err != nil {
		return "", err
	}
	sources, replace := map[string][]byte{}, map[string]string{}
	for _, f := range faults {
		original := filepath.Join(checkout, filepath.FromSlash(f.File))
		if sources[original] == nil {
			if sources[original], err = os.ReadFile(original); err != nil {
				return "", err
			}
			replace[original] = filepath.Join(dir, fmt.Sprintf("source-%d.go", len(replace)))
		}
		if sources[original], err = f.Seed(sources[original]); err != nil {
			return "", err
		}
	}
	text, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		return "", err
	}
	path = filepath.Join(dir, "overlay.json")
	errs := []error{os.MkdirAll(dir, 0o755), os.WriteFile(path, text, 0o644)}
	for original, source := range sources {
		errs = append(errs, os.WriteFile(replace[original], source, 0o644))
	}
	return path, errors.Join(errs...)
}
