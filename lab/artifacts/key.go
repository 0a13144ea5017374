package artifacts

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// key is the name of an entry: a hash of everything that its content depends on.
// Each part is written with its length, so that no two lists of parts collide.
func key(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s\n", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil))[:20]
}

// hashModule is a hash of the files that a build in a Go module's folder can
// read: all regular files but those of modules nested in it, hidden folders,
// tests, documents, and what was built or logged into out/, which changes all the
// while that the checks run.
func hashModule(dir string) (string, error) {
	h := sha256.New()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if path == dir {
				return nil
			}
			if name := d.Name(); strings.HasPrefix(name, ".") || name == "testdata" || path == filepath.Join(dir, "out") {
				return filepath.SkipDir
			}
			if _, err := os.Stat(filepath.Join(path, "go.mod")); err == nil {
				return filepath.SkipDir
			}
			return nil
		}
		if !d.Type().IsRegular() || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, ".md") {
			return nil
		}
		rel, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		one := sha256.New()
		if _, err := io.Copy(one, f); err != nil {
			return err
		}
		fmt.Fprintf(h, "%q %x\n", filepath.ToSlash(rel), one.Sum(nil))
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("hash the files of module %s: %w", dir, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
