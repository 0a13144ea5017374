// Command build builds the executables that ship, for every architecture, into
// out/bin/ARCH, and holds them to their budgets and to the import rules.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/branchline-cni/branchline/build/product"
)

func main() {
	out := flag.String("out", "out/bin", "folder that the executables go to")
	version := flag.String("version", "dev", "version that the executables report")
	arch := flag.String("arch", strings.Join(product.Architectures(), ","), "architectures, separated by commas")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *out, *version, strings.Split(*arch, ",")); err != nil {
		fmt.Fprintln(os.Stderr, "build:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, out, version string, archs []string) error {
	programs := product.Programs()
	var errs []error
	pkgs, links, err := product.LoadPackages(ctx, ".", programs...)
	if err != nil {
		return err
	}
	errs = append(errs, product.CheckImports(pkgs, links, programs...)...)
	fmt.Printf("import rules: %d packages, %d violations\n", len(pkgs), len(errs))

	for _, arch := range archs {
		for _, p := range append(slices.Clone(programs), product.CorePlugins()...) {
			built, err := product.Build(ctx, ".", arch, version, filepath.Join(out, arch), p)
			if err != nil {
				errs = append(errs, err)
				continue
			}
			for _, b := range built {
				verdict := "ok"
				if err := b.Check(); err != nil {
					errs = append(errs, err)
					verdict = "FAILED"
				}
				budget := "no budget"
				if b.Program.MaxBytes > 0 {
					budget = fmt.Sprintf("of %.1f MB", float64(b.Program.MaxBytes)/1e6)
				}
				fmt.Printf("%-6s %-15s %5.1f MB %-12s %s\n", b.Arch, b.Program.Name, float64(b.Bytes)/1e6, budget, verdict)
			}
		}
	}
	return errors.Join(errs...)
}
