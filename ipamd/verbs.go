package ipamd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

const (
	checkMost = 4 * time.Second
	gcMost    = 20 * time.Second
	// brokenAfter is how long the host's routing may fail before pods that run can't be expected to work.
	brokenAfter = 2 * time.Minute
)

// Check answers with what Add has answered for the sandbox, as it would be today.
func (s service) Check(ctx context.Context, in *rpc.CheckRequest) (*rpc.AddReply, error) {
	start := time.Now()
	ctx, cancel := within(ctx, checkMost)
	defer cancel()
	k, err := keyOf(in.GetAttachment())
	if err != nil {
		return nil, statusOf(err).Err()
	}
	al, ok := s.a.store.Get(k)
	p := in.GetPod()
	if !ok || p.GetUid() != "" && al.Pod.UID != "" && p.GetUid() != al.Pod.UID {
		return nil, status.Errorf(codes.NotFound, "the node agent holds nothing for sandbox %s of pod %s (%s)", k, name(p), p.GetUid())
	}
	r, err := s.a.answer(ctx, al)
	if err != nil {
		s.a.logRequest(ctx, "check", p, in.GetAttachment(), al, start, err)
		return nil, statusOf(err).Err()
	}
	r.Host = nil // nothing is to be set
	return r, nil
}

// Status says whether Add can succeed at all. A full pool is not asked for: it is an event and a metric, while the
// runtime would take the whole node for unready.
func (s service) Status(context.Context, *rpc.StatusRequest) (*rpc.StatusReply, error) {
	r := &rpc.StatusReply{Version: s.a.opt.Version, Ready: s.a.ready.Load()}
	if !r.Ready {
		r.Message = s.a.whyNotReady()
	}
	if since, err := s.a.routingBroken(); err != nil && since >= brokenAfter {
		r.DataPathBroken = true
		r.Message = fmt.Sprintf("the host's routing can't be put in place for %s: %v", since.Round(time.Second), err)
	}
	return r, nil
}

func (a *Agent) whyNotReady() string {
	switch {
	case !a.hasListed():
		return "the ENIs of this instance are not known, or their routing is not in place"
	case !a.opt.Kube.PodsSynced():
		return "the pods of this node are not known yet: look at the API server and at the agent's roles"
	case !a.opt.Kube.PoliciesKnown():
		return "the SecurityGroupPolicies are not known yet: look at the API server, and apply the ClusterRole aws-node of this version's manifest"
	}
	return "it has no address to give yet"
}

// noteRouteError remembers since when the routing fails.
func (a *Agent) noteRouteError(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	a.mu.Lock()
	failed := a.routeErr != nil
	if err != nil && !failed {
		a.routeSince = a.opt.Now()
	}
	a.routeErr = err
	a.mu.Unlock()
	if err != nil || failed {
		a.health.Fire()
	}
}

// serving is what the agent's health says: pods can be wired, and what is wired can be expected to work. As with Status, a
// full pool is no reason to say no.
func (a *Agent) serving() bool {
	since, err := a.routingBroken()
	return a.ready.Load() && (err == nil || since < brokenAfter)
}

// untilBroken is how long until failing routing counts; 0 where it doesn't fail, or counts already.
func (a *Agent) untilBroken() time.Duration {
	since, err := a.routingBroken()
	if err == nil {
		return 0
	}
	return max(0, brokenAfter-since)
}

func (a *Agent) routingBroken() (since time.Duration, err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.opt.Now().Sub(a.routeSince), a.routeErr
}

// noteReady tells the executable, for when it finds no agent, that there was one a moment ago.
func (a *Agent) noteReady() {
	if a.opt.NoteReady == nil {
		return
	}
	if err := a.opt.NoteReady(); err != nil {
		a.metrics.failed("ready")
		a.opt.Log.Warn("the time of readiness is not written: a restart of this agent makes the node unready at once", "error", err)
	}
}

func (a *Agent) runReady(ctx context.Context) {
	for ctx.Err() == nil {
		changed := a.changed.C()
		if !a.ready.Load() {
			wait(ctx, 0, changed)
			continue
		}
		a.noteReady()
		wait(ctx, rpc.ReadyEvery)
	}
}

// Gc frees what sandboxes of the network held that the runtime doesn't know any more.
func (s service) Gc(ctx context.Context, in *rpc.GcRequest) (*rpc.GcReply, error) {
	ctx, cancel := within(ctx, gcMost)
	defer cancel()
	if in.GetNetworkName() == "" {
		return nil, statusOf(fmt.Errorf("%w: network_name is needed", errInvalid)).Err()
	}
	valid := map[store.Key]bool{}
	for _, at := range in.GetValid() {
		k, err := keyOf(at)
		if err != nil {
			return nil, statusOf(err).Err()
		}
		valid[k] = true
	}
	freed, err := s.a.collect(ctx, in.GetNetworkName(), valid)
	if err != nil {
		s.a.metrics.failed("gc")
		s.a.opt.Log.Warn("what the runtime says is over could not be freed; it is found out by other means", "freed", freed, "error", err)
		return nil, statusOf(err).Err()
	}
	return &rpc.GcReply{Version: s.a.opt.Version, Freed: uint32(freed)}, nil
}

// collect ends allocations on two sources: the runtime does not know the sandbox, and the kernel has nothing of it.
// Those that an executable may be at work on are left.
func (a *Agent) collect(ctx context.Context, network string, valid map[store.Key]bool) (freed int, err error) {
	var errs []error
	for _, al := range a.store.View().Allocations {
		if al.Network != network || valid[al.Key] || a.sinceAsked(al) < inFlight {
			continue
		}
		ok, err := a.collectOne(ctx, al.Key)
		if err != nil {
			errs = append(errs, fmt.Errorf("pod %s, sandbox %s: %w", al.Pod, al.Key, err))
		} else if ok {
			freed++
		}
	}
	return freed, errors.Join(errs...)
}

func (a *Agent) collectOne(ctx context.Context, k store.Key) (freed bool, err error) {
	unlock, err := a.sandboxes.lock(ctx, k.ContainerID)
	if err != nil {
		return false, err
	}
	defer unlock()
	al, ok := a.store.Get(k)
	if !ok || a.sinceAsked(al) < inFlight {
		return false, nil
	}
	here, err := a.kernel(ctx)
	if err != nil || here.holds(al) && !a.heldByAnother(al) {
		return false, err
	}
	if _, freed, err = a.free(ctx, k); err != nil || !freed {
		return freed, err
	}
	a.ended(al)
	a.metrics.dels.WithLabelValues("Collected").Inc()
	a.opt.Log.Info("the runtime does not know this sandbox and nothing of it is in the kernel: what it held is free", "pod", al.Pod.String(), "uid", al.Pod.UID, "sandbox", k.ContainerID)
	return true, nil
}

// heldByAnother: the sandboxes of one branch pod share its VLAN link and address. What is left in the kernel is then the
// other one's, which keeps the branch ENI.
func (a *Agent) heldByAnother(al store.Allocation) bool {
	return al.Branch != nil && slices.ContainsFunc(a.store.View().Allocations, func(o store.Allocation) bool {
		return o.Branch != nil && o.Key != al.Key && o.Pod.UID == al.Pod.UID
	})
}
