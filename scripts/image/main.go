// Command image builds the container images of the product, FROM scratch, one
// tarball per image and architecture, for `ctr -n k8s.io images import` or
// `docker load`. Pushing them to a registry is left to the usual tools.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/branchline-cni/branchline/build/image"
	"github.com/branchline-cni/branchline/build/product"
)

type options struct {
	agent, controller, version, out, bin string
	archs                                []string
}

func main() {
	var o options
	flag.StringVar(&o.agent, "agent", "localhost/branchline/aws-node:dev", "name of the node agent's image")
	flag.StringVar(&o.controller, "controller", "localhost/branchline/vpc-controller:dev", "name of the controller's image")
	flag.StringVar(&o.version, "version", "dev", "version that the executables report")
	flag.StringVar(&o.out, "out", "out/images", "folder that the tarballs go to")
	flag.StringVar(&o.bin, "bin", "", "folder of scripts/build's executables: those that are there and current are not built again (default: a temporary one)")
	arch := flag.String("arch", strings.Join(product.Architectures(), ","), "architectures, separated by commas")
	flag.Parse()
	o.archs = strings.Split(*arch, ",")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "image:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	if o.bin == "" {
		tmp, err := os.MkdirTemp("", "branchline-image-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		o.bin = tmp
	}
	for _, arch := range o.archs {
		bin := filepath.Join(o.bin, arch)
		programs := append(product.Programs(), product.CorePlugins()...)
		if _, err := product.Build(ctx, ".", arch, o.version, bin, programs...); err != nil {
			return err
		}
		for _, s := range []image.Spec{product.AgentImage(o.agent, arch, bin), product.ControllerImage(o.controller, arch, bin)} {
			base, _, _ := strings.Cut(filepath.Base(s.Name), ":")
			tarball := filepath.Join(o.out, base+"-"+arch+".tar")
			if err := image.Build(tarball, s); err != nil {
				return err
			}
			info, err := os.Stat(tarball)
			if err != nil {
				return err
			}
			fmt.Printf("%s (%s): %s, %.1f MB\n", s.Name, arch, tarball, float64(info.Size())/1e6)
		}
	}
	return nil
}
