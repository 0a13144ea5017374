package main

import (
	"context"
	"net/netip"

	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/plugins/datapath"
)

// sweeper gives the agent the executable's own code for what is garbage: the two rooms don't know each other.
type sweeper struct{ lockPath, vethPrefix string }

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

// Unwire implements ipamd.Sweeper.
func (s sweeper) Unwire(ctx context.Context, pod store.Pod, ifName string, address netip.Addr) ([]string, error) {
	lock, err := datapath.OpenLock(s.lockPath)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	removed, err := datapath.TeardownUpstream(ctx, datapath.Upstream{
		PodNamespace: pod.Namespace, PodName: pod.Name, HostVeth: datapath.HostVethName(s.vethPrefix, pod.Namespace, pod.Name), IfName: ifName, Address: address,
	}, lock)
	return removed.Links, err
}
