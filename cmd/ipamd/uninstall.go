package main

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/ipamd/uninstall"
	"github.com/branchline-cni/branchline/rpc"
)

// uninstallCommand is for the way back to another CNI plugin, on a drained node without an agent.
func uninstallCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	runDir := flags.String("run-dir", filepath.Dir(rpc.SocketPath), "`directory` of the agent's socket and file of allocations")
	force := flags.Bool("force", false, "go on although pods are wired: they lose their network")
	if err := parse(flags, args); err != nil {
		return err
	}
	log := logger(os.Stderr, slog.LevelInfo)
	c, err := load(log, os.LookupEnv)
	if err != nil {
		return err
	}
	return uninstall.Run(ctx, uninstall.Options{Config: c, RunDir: *runDir, SysctlDir: "/proc/sys", Force: *force, Log: log})
}
