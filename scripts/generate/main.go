// Command generate makes the code and manifests that are committed but not
// written by hand: gRPC code from rpc/*.proto, deep copies and CRDs from api/.
// With -check it makes them in a copy instead, and fails with the difference
// when the committed ones are not what it would make.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/ipamd/config"
)

// steps are the generators, each run in the checkout's root.
var steps = [][]string{
	{"buf", "generate"},
	{"controller-gen", "object", "paths=./api/..."},
	{"controller-gen", "crd", "paths=./api/...", "output:crd:artifacts:config=config/crd"},
}

// inputs is what the generators read and where they write.
var inputs = []string{"go.mod", "go.sum", "buf.yaml", "buf.gen.yaml", "tools", "rpc", "api", "config/crd", configurationDoc}

// configurationDoc holds the table of the agent's variables between two marks.
const configurationDoc = "docs/configuration.md"

func main() {
	check := flag.Bool("check", false, "change nothing; fail when the committed files are not current")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *check); err != nil {
		fmt.Fprintln(os.Stderr, "generate:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, check bool) error {
	root, err := filepath.Abs(".")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(root, "buf.gen.yaml")); err != nil {
		return fmt.Errorf("start it in the root of the checkout: %w", err)
	}
	if !check {
		return generate(ctx, root)
	}

	dir, err := os.MkdirTemp("", "branchline-generate-")
	if err != nil {
		return fmt.Errorf("make a folder for a copy: %w", err)
	}
	defer os.RemoveAll(dir)
	for _, in := range inputs {
		if err := copyTree(filepath.Join(root, in), filepath.Join(dir, in)); err != nil {
			return fmt.Errorf("copy %s: %w", in, err)
		}
	}
	// A generator that makes nothing must not look current.
	removed, err := removeGenerated(dir)
	if err != nil {
		return err
	}
	if err := generate(ctx, dir); err != nil {
		return err
	}
	var stale []string
	for _, d := range []string{"rpc", "api", "config/crd", configurationDoc} {
		diff, err := compare(ctx, root, dir, d)
		if err != nil {
			return err
		}
		if diff != "" {
			stale = append(stale, diff)
		}
	}
	if len(stale) > 0 {
		return fmt.Errorf("the committed files are not what make generate makes:\n%s", strings.Join(stale, ""))
	}
	fmt.Printf("generate: %d generated files are current\n", removed)
	return nil
}

func generate(ctx context.Context, dir string) error {
	for _, step := range steps {
		cmd := exec.CommandContext(ctx, "go", append([]string{"tool", "-modfile=tools/go.mod"}, step...)...)
		cmd.Dir = dir
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
		cmd.WaitDelay = 10 * time.Second
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("run %s: %w\n%s", strings.Join(step, " "), err, bytes.TrimSpace(out))
		}
	}
	return writeVariables(filepath.Join(dir, configurationDoc))
}

// writeVariables replaces the table in the documentation.
func writeVariables(path string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("write the table of variables: %w", err)
	}
	const begin, end = "<!-- variables -->\n", "<!-- end -->\n"
	head, rest, ok := strings.Cut(string(b), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("write the table of variables: %s lacks its marks", path)
	}
	if err := os.WriteFile(path, []byte(head+begin+config.MarkdownTable()+end+tail), 0o644); err != nil {
		return fmt.Errorf("write the table of variables: %w", err)
	}
	return nil
}

// isGenerated says by its name whether a file is the generators'.
func isGenerated(rel string) bool {
	name := filepath.Base(rel)
	return rel == configurationDoc || strings.HasSuffix(name, ".pb.go") || strings.HasPrefix(name, "zz_generated.") ||
		strings.HasPrefix(rel, "config/crd/") && strings.HasSuffix(name, ".yaml") && strings.Contains(name, "_")
}

func removeGenerated(dir string) (int, error) {
	var files []string
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(dir, path)
		if err == nil && isGenerated(rel) && rel != configurationDoc { // only a part of it is generated
			files = append(files, path)
		}
		return err
	})
	for _, f := range files {
		err = errors.Join(err, os.Remove(f))
	}
	if err != nil {
		return 0, fmt.Errorf("remove the generated files from the copy: %w", err)
	}
	return len(files), nil
}

func copyTree(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if info.IsDir() {
		return os.CopyFS(to, os.DirFS(from))
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, b, 0o644)
}

// compare returns how the generated files of folder d differ, in diff's form.
func compare(ctx context.Context, committed, made, d string) (string, error) {
	names := map[string]bool{}
	for _, base := range []string{committed, made} {
		err := filepath.WalkDir(filepath.Join(base, d), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			rel, err := filepath.Rel(base, path)
			if err == nil && isGenerated(rel) {
				names[rel] = true
			}
			return err
		})
		if err != nil {
			return "", fmt.Errorf("list the generated files: %w", err)
		}
	}
	var all strings.Builder
	for _, rel := range slices.Sorted(maps.Keys(names)) {
		a, aerr := os.ReadFile(filepath.Join(committed, rel))
		b, berr := os.ReadFile(filepath.Join(made, rel))
		switch {
		case aerr != nil:
			fmt.Fprintf(&all, "%s is missing\n", rel)
		case berr != nil:
			fmt.Fprintf(&all, "%s is made by nothing any more\n", rel)
		case !bytes.Equal(a, b):
			cmd := exec.CommandContext(ctx, "diff", "-u", "--label", "committed/"+rel, "--label", "made/"+rel, filepath.Join(committed, rel), filepath.Join(made, rel))
			out, _ := cmd.Output() // exits with 1 where files differ
			fmt.Fprintf(&all, "%s", out)
			if len(out) == 0 {
				fmt.Fprintf(&all, "%s differs\n", rel)
			}
		}
	}
	return all.String(), nil
}
