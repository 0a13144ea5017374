package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/cobra"

	"github.com/branchline-cni/branchline/lab/demo"
)

func demoCommand() *cobra.Command {
	var o demo.Options
	c := &cobra.Command{
		Use:   "demo",
		Short: "play the walk-through in a lab of its own and keep the evidence",
		Long: "Plays the eight steps of the walk-through of security groups for pods, with counter-proofs, and checks each claim\n" +
			"against the output of a program that is not ours. Exits 0 only if every claim was seen.",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := prepareHost(cmd.Context()); err != nil {
				return err
			}
			if o.EvidenceDir == "" {
				o.EvidenceDir = filepath.Join("/var/tmp", "branchline-evidence-"+time.Now().UTC().Format("20060102-150405"))
			}
			if err := os.MkdirAll(o.EvidenceDir, 0o755); err != nil {
				return fmt.Errorf("make the evidence folder: %w", err)
			}
			logFile, err := os.Create(filepath.Join(o.EvidenceDir, "vpclab.log"))
			if err != nil {
				return fmt.Errorf("make the lab's log: %w", err)
			}
			defer logFile.Close()
			o.Out = os.Stdout
			o.Log = slog.New(slog.NewTextHandler(logFile, &slog.HandlerOptions{Level: slog.LevelDebug}))
			return demo.Run(cmd.Context(), o)
		},
	}
	f := c.Flags()
	f.StringVar(&o.EvidenceDir, "evidence", "", "folder that keeps the evidence (default: a new one in /var/tmp)")
	f.BoolVar(&o.Kills, "kills", false, "kill agent, controller and API server once in each of steps 5, 7 and 8")
	f.Uint64Var(&o.Seed, "seed", 1, "seed of the moments of the kills")
	return c
}
