package main

import (
	"context"
	"log/slog"
	"os"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/takeover"
)

// dropLegacyNAT removes the rules of upstream's agent that only the host's own iptables reaches. At the first start on a node
// this agent's rules are not there yet, so it is a later start that does it: both at once do no harm. It never keeps the
// agent from starting.
func dropLegacyNAT(ctx context.Context, root string, log *slog.Logger) {
	ours, err := takeover.HasTable(hostnet.NATTable)
	if err != nil || !ours {
		if err != nil {
			log.Error("whether this agent's rules for NAT are in place can't be found out; what another agent may have left stays", "error", err)
		}
		return
	}
	if _, err := os.Stat(root); err != nil {
		return // not mounted: the user has decided so
	}
	removed, left, err := takeover.RemoveLegacyNAT(ctx, root)
	switch {
	case err != nil:
		log.Error("rules of another agent in iptables-legacy can't be removed", "left", left, "error", err)
	case left != "":
		log.Warn("rules of another agent may be left", "left", left)
	case len(removed) > 0:
		log.Info("rules of another agent are removed", "removed", removed)
	}
}
