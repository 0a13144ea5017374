package main

import (
	"context"

	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/plugins/datapath"
)

// sweeper gives the agent the executable's own code for what is garbage: the two rooms don't know each other.
type sweeper struct{ lockPath string }

// Sweep implements ipamd.Sweeper.
func (s sweeper) Sweep(ctx context.Context, over []store.Key) ([]string, error) {
	lock, err := datapath.OpenLock(s.lockPath)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	owners := make([]datapath.Owner, 0, len(over))
	for _, k := range over {
		owners = append(owners, datapath.Owner{ContainerID: k.ContainerID, IfName: k.IfName})
	}
	stale := datapath.Valid(owners)
	return datapath.Collect(ctx, lock, func(o datapath.Owner) bool { return !stale(o) })
}
