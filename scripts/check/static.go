package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
)

func makeArtifacts(ctx context.Context, w *work) error {
	// One after the other: the builds use all cores by themselves.
	steps := []struct {
		name string
		make func() error
	}{
		{"Debian packages", func() error {
			_, err := w.cache.Containerd(ctx)
			_, err2 := w.cache.NodeTools(ctx)
			_, err3 := w.cache.PostgreSQL(ctx)
			_, err4 := w.cache.AWSCLI(ctx)
			return errors.Join(err, err2, err3, err4)
		}},
		{"kernel", func() error { _, err := w.cache.Kernel(ctx); return err }},
		{"CoreDNS", func() error { _, err := w.cache.CoreDNS(ctx); return err }},
		{"containerd 2", func() error { _, err := w.cache.Containerd2(ctx); return err }},
		{"Kubernetes", func() error { _, err := w.cache.Hyperkube(ctx); return err }},
	}
	var errs []error
	for _, s := range steps {
		fmt.Fprintf(w.log, "%s\n", s.name)
		if err := s.make(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func checkGenerated(ctx context.Context, w *work) error {
	return w.command(ctx, nil, nil, "go", "run", "./scripts/generate", "-check")
}

// allTags are the build tags of our tests: code behind them is linted too.
const allTags = "kernel,envtest,lab"

func lint(ctx context.Context, w *work) error {
	var errs []error
	files, err := goFiles(w.root)
	if err != nil {
		return err
	}
	unformatted, err := w.output(ctx, append([]string{"gofmt", "-l"}, files...)...)
	if err != nil {
		errs = append(errs, err)
	} else if unformatted != "" {
		fmt.Fprintf(w.log, "not formatted:\n%s", unformatted)
		errs = append(errs, fmt.Errorf("gofmt: not formatted: %s", strings.Join(strings.Fields(unformatted), ", ")))
	}
	long, err := longFiles(w.root, files)
	if err != nil {
		errs = append(errs, err)
	}
	for _, l := range long { // style.md's wish, not a rule: seen, not failed
		fmt.Fprintln(w.log, l)
	}
	errs = append(errs, documentedTests(w.root),
		// With the tags everything is there: no file of ours is left out by one.
		w.command(ctx, nil, nil, "go", "vet", "-tags", allTags, "./..."),
		w.command(ctx, nil, nil, "go", "tool", "-modfile=tools/go.mod", "staticcheck", "-tags", allTags, "./..."),
		w.command(ctx, nil, nil, "go", "tool", "-modfile=tools/go.mod", "buf", "lint"),
	)
	return errors.Join(errs...)
}

func build(ctx context.Context, w *work) error {
	bin := filepath.Join(w.tmp, "bin")
	return errors.Join(
		w.command(ctx, nil, nil, "go", "build", "./..."),
		w.command(ctx, nil, nil, "go", "run", "./scripts/build", "-out", bin),
		w.command(ctx, nil, nil, "go", "run", "./scripts/image", "-bin", bin, "-out", filepath.Join(w.tmp, "images")),
	)
}
