package main

import (
	"context"
	"maps"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/test/bench/contender"
)

// build puts every executable into bin, all built with the tags and flags of what ships, unless the cache has them: ours is
// what ships.
func build(ctx context.Context, bin string) error {
	packages := map[string]string{}
	for _, p := range product.Programs() {
		if p.Name == contender.Ours {
			packages[p.Name] = "./" + p.Package
		}
	}
	maps.Copy(packages, contender.Programs())
	cache, err := artifacts.Open()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(bin, 0o755); err != nil {
		return err
	}
	for name, pkg := range packages {
		built, err := cache.Go(ctx, name, pkg, "")
		if err != nil {
			return err
		}
		b, err := os.ReadFile(built)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(bin, name), b, 0o755); err != nil {
			return err
		}
	}
	return nil
}
