// Command vpclab is the lab: an EC2 region, its VPC and a Kubernetes cluster with Branchline, on one machine.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	root := &cobra.Command{
		Use:           "vpclab",
		Short:         "an EC2 region, its VPC and a Kubernetes cluster with Branchline, on one machine",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(upCommand(), downCommand(), demoCommand(), serveCommand())
	if err := root.ExecuteContext(ctx); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("interrupted: %w", err)
		}
		fmt.Fprintf(os.Stderr, "vpclab: %v\n", err)
		stop()
		os.Exit(1)
	}
}

// prepareHost names what the machine lacks, or installs the Debian packages that the lab needs (QEMU and the like).
func prepareHost(ctx context.Context) error {
	c, err := artifacts.Open()
	if err != nil {
		return err
	}
	return host.Lab(c.Dir(), "/var/tmp").Prepare(ctx, os.Stdout)
}
