package ipamd

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/ipamd/takeover"
)

// takeOver takes in what the node's former agent had given to pods, once: at the first start on a node, before any address
// is given. It fails only where this agent's own disk does. A checkpoint that can't be read stops nothing: what is wired
// is held by what the kernel shows of it.
func (a *Agent) takeOver() error {
	path := a.opt.Config.BackingStore
	if path == "" || !a.store.MayTakeOver() {
		return nil
	}
	c, err := takeover.Read(path)
	note := store.TakenOver{From: path}
	switch {
	case errors.Is(err, takeover.ErrNoCheckpoint):
		note.From = ""
	case err != nil:
		note.Problem = err.Error()
		kept, kerr := takeover.KeepAside(path, a.opt.Now())
		a.opt.Log.Error("the checkpoint of the node's former agent can't be read; addresses that are wired are left alone until their pods end", "error", err, "kept", kept, "keepError", kerr)
		a.events.Node("CheckpointUnreadable", "pods of the node's former agent are not taken over (%v); the file is kept as %s; they keep their addresses, which are given to nobody while they are wired", err, kept)
	}
	taken, err := a.store.TakeOver(c.Allocations, note)
	if err != nil {
		return err
	}
	if note.From != "" && note.Problem == "" {
		a.opt.Log.Info("the pods of the node's former agent are taken over", "checkpoint", path, "pods", taken)
	}
	if len(c.Unusable) > 0 {
		a.opt.Log.Warn("entries of the former agent's checkpoint can't be used; addresses that are wired are left alone until their pods end", "entries", c.Unusable)
	}
	return nil
}

// runSettle completes what was taken over, as pods and ENIs become known, until nothing is open.
func (a *Agent) runSettle(ctx context.Context) {
	var retry backoff
	for ctx.Err() == nil {
		channels := []<-chan struct{}{a.opt.Kube.Changed.C(), a.inventory.Changed.C(), a.changed.C()}
		open, err := a.settle()
		switch {
		case err != nil:
			a.metrics.failed("takeOver")
			a.opt.Log.Error("what is known by now of pods that were taken over can't be written; it is tried again", "error", err)
			wait(ctx, retry.next())
		case open == 0:
			return
		default:
			wait(ctx, 0, channels...)
		}
	}
}

// settle returns how many allocations are still open.
func (a *Agent) settle() (open int, err error) {
	for _, al := range a.store.View().Allocations {
		if al.Regular == nil || al.Regular.Settled() && al.Pod.UID != "" {
			continue
		}
		uid, where := a.uidOf(al), a.whereIs(al.Regular)
		if uid != "" || where != nil {
			if err := a.store.Settle(al.Key, uid, where); err != nil {
				return open, err
			}
		}
		if al.Pod.UID == "" && uid == "" || !al.Regular.Settled() && where == nil {
			open++
		}
	}
	return open, nil
}

// uidOf is the UID of the pod that has the allocation's address and name; empty where that is known already, or not yet.
func (a *Agent) uidOf(al store.Allocation) string {
	p, ok := a.opt.Kube.Pod(al.Pod.Namespace, al.Pod.Name)
	switch {
	case al.Pod.UID != "" || !ok || !slices.Contains(p.IPs[:], al.Regular.Address):
		return ""
	case p.MirrorOf != "":
		return p.MirrorOf // the runtime's word for a static pod
	}
	return p.UID
}

// whereIs is what is known of an address of which only itself is known; nil: nothing yet.
func (a *Agent) whereIs(r *store.Regular) *store.Regular {
	all := a.inventory.ENIs()
	at := slices.IndexFunc(all, func(e enis.ENI) bool { return !e.Trunk && e.Owns(r.Address) })
	if r.Settled() || at < 0 {
		return nil
	}
	return &store.Regular{Address: r.Address, ENIID: all[at].ID, Card: all[at].Card, Device: all[at].Device, RouteTable: slotOf(all[at]).Table()}
}

// isOf says whether the pod is the one that the allocation was made for. Of a pod that was taken over and whose UID is not
// known yet its address tells; as long as it has none in its status, it may be.
func isOf(p kube.Pod, al store.Allocation) bool {
	if al.Pod.UID != "" || al.Regular == nil {
		return p.Is(al.Pod.UID)
	}
	return !p.IPs[0].IsValid() || slices.Contains(p.IPs[:], al.Regular.Address)
}

// free ends what a sandbox holds. One that was taken over is unwired first, by what is remembered of it: its DEL does that from
// the runtime's cached result, without which the executable can't know whose the links are, which carry no mark.
func (a *Agent) free(ctx context.Context, k store.Key) (al store.Allocation, found bool, err error) {
	al, found = a.store.Get(k)
	if found && a.opt.Sweeper != nil && a.store.View().IsTakenOver(al) {
		removed, err := a.opt.Sweeper.Unwire(ctx, al.Pod, al.IfName, al.Regular.Address)
		if err != nil {
			return al, found, fmt.Errorf("remove what the node's former agent has wired for pod %s: %w", al.Pod, err)
		}
		if len(removed) > 0 {
			a.opt.Log.Info("what the node's former agent has wired for a pod is removed", "pod", al.Pod.String(), "sandbox", k.ContainerID, "links", removed)
		}
	}
	return a.store.Free(k)
}
