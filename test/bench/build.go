package main

import (
	"context"
	"fmt"
	"os"
	"runtime"

	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/test/bench/contender"
)

// build builds every executable into bin, all with the tags and flags of what ships: ours is what ships.
func build(ctx context.Context, bin string) error {
	root, err := artifacts.Checkout()
	if err != nil {
		return err
	}
	var programs []product.Program
	for _, p := range product.Programs() {
		if p.Name == contender.Ours {
			programs = append(programs, p)
		}
	}
	for name, pkg := range contender.Programs() {
		programs = append(programs, product.Program{Name: name, Package: pkg})
	}
	for _, p := range programs {
		fmt.Fprintln(os.Stderr, "build", p.Name)
		if _, err := product.Build(ctx, root, runtime.GOARCH, rpc.Version, bin, p); err != nil {
			return err
		}
	}
	return nil
}
