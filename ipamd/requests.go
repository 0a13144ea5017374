package ipamd

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/podeni"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

const (
	// An answer with a reason has to reach the executable before its own deadline: that is what margin is for.
	margin     = time.Second
	addMost    = 85 * time.Second
	delMost    = 15 * time.Second
	addressFor = 40 * time.Second // at most this long is an address waited for; longer than the cool-down
)

// within bounds a request by most, and by the caller's deadline less the margin.
func within(ctx context.Context, most time.Duration) (context.Context, context.CancelFunc) {
	deadline := time.Now().Add(most)
	if d, ok := ctx.Deadline(); ok {
		// A caller in a hurry still gets three quarters of its time.
		left := time.Until(d)
		if own := time.Now().Add(max(left-margin, left*3/4)); own.Before(deadline) {
			deadline = own
		}
	}
	return context.WithDeadline(ctx, deadline)
}

// service is the gRPC face of the agent.
type service struct {
	nodeagent.UnimplementedNodeAgentServer
	a *Agent
}

// Add answers with the interface of one sandbox.
func (s service) Add(ctx context.Context, in *rpc.AddRequest) (*rpc.AddReply, error) {
	start := time.Now()
	s.a.metrics.adds.Inc()
	ctx, cancel := within(ctx, addMost)
	defer cancel()
	defer s.a.metrics.doing("add")()
	al, kind, reply, err := s.a.add(ctx, in)
	s.a.logRequest(ctx, "add", in.GetPod(), in.GetAttachment(), al, start, err)
	s.a.metrics.request("add", kind, start, err)
	if err != nil {
		s.a.metrics.failed("add")
		st := statusOf(err)
		switch st.Code() {
		case codes.FailedPrecondition, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Unavailable:
			p := in.GetPod()
			s.a.events.Pod(p.GetNamespace(), p.GetName(), p.GetUid(), "PodNotWired", st.Message())
		}
		return nil, st.Err()
	}
	return reply, nil
}

// Del ends what a sandbox holds.
func (s service) Del(ctx context.Context, in *rpc.DelRequest) (*rpc.DelReply, error) {
	start := time.Now()
	ctx, cancel := within(ctx, delMost)
	defer cancel()
	defer s.a.metrics.doing("del")()
	al, found, err := s.a.del(ctx, in)
	s.a.metrics.request("del", kindOf(al), start, err)
	s.a.metrics.dels.WithLabelValues(delReason(in)).Inc()
	if reason := in.GetReason(); reason != "" {
		s.a.opt.Log.Warn("the executable gave an interface back", "pod", name(in.GetPod()), "sandbox", in.GetAttachment().GetContainerId(), "reason", reason)
	}
	s.a.logRequest(ctx, "del", in.GetPod(), in.GetAttachment(), al, start, err)
	if err != nil {
		s.a.metrics.failed("del")
		return nil, statusOf(err).Err()
	}
	return &rpc.DelReply{Version: s.a.opt.Version, Found: found, Host: s.a.hostAfter(ctx, al)}, nil
}

func delReason(in *rpc.DelRequest) string {
	if in.GetAddFailed() {
		return "AddFailed"
	}
	return "PodDeleted"
}

// errInvalid marks a request that can't be served as it is.
var errInvalid = errors.New("invalid request")

func statusOf(err error) *status.Status {
	code := codes.Internal
	switch {
	case errors.Is(err, errInvalid), errors.Is(err, store.ErrOtherPod):
		code = codes.InvalidArgument
	case errors.Is(err, podeni.ErrUnknown):
		code = codes.NotFound
	case errors.Is(err, podeni.ErrRefused), errors.Is(err, store.ErrReleased):
		code = codes.FailedPrecondition
	case errors.Is(err, store.ErrNoAddress):
		code = codes.ResourceExhausted
	case errors.Is(err, podeni.ErrUnavailable), errors.Is(err, store.ErrNotWritten):
		code = codes.Unavailable
	case errors.Is(err, podeni.ErrLate), errors.Is(err, context.DeadlineExceeded):
		code = codes.DeadlineExceeded
	case errors.Is(err, context.Canceled):
		code = codes.Canceled
	}
	return status.New(code, err.Error())
}

func name(p *rpc.Pod) string { return p.GetNamespace() + "/" + p.GetName() }

// logRequest writes the one line that each pod operation has.
func (a *Agent) logRequest(ctx context.Context, op string, p *rpc.Pod, at *rpc.Attachment, al store.Allocation, start time.Time, err error) {
	attrs := []slog.Attr{
		slog.String("pod", name(p)), slog.String("uid", p.GetUid()),
		slog.String("sandbox", at.GetContainerId()), slog.String("interface", at.GetIfName()), slog.String("took", time.Since(start).Round(time.Microsecond).String()),
	}
	switch {
	case al.Regular != nil:
		attrs = append(attrs, slog.String("address", al.Regular.Address.String()), slog.String("eni", al.Regular.ENIID), slog.Int("device", al.Regular.Device))
		if len(al.Further) > 0 {
			attrs = append(attrs, slog.Any("further", al.Further))
		}
	case al.Branch != nil:
		attrs = append(attrs, slog.String("address", al.Branch.Address.String()), slog.String("eni", al.Branch.ENIID), slog.Int("vlan", al.Branch.VLAN))
	}
	level := slog.LevelInfo
	if err != nil {
		level, attrs = slog.LevelError, append(attrs, slog.Any("error", err))
	}
	a.opt.Log.LogAttrs(ctx, level, op, attrs...)
}

func keyOf(at *rpc.Attachment) (store.Key, error) {
	k := store.Key{ContainerID: at.GetContainerId(), IfName: at.GetIfName()}
	if k.ContainerID == "" || k.IfName == "" {
		return k, fmt.Errorf("%w: container_id and if_name are needed", errInvalid)
	}
	return k, nil
}

func (a *Agent) add(ctx context.Context, in *rpc.AddRequest) (al store.Allocation, kind string, r *rpc.AddReply, err error) {
	kind = kindUnknown
	k, err := keyOf(in.GetAttachment())
	if err != nil {
		return al, kind, nil, err
	}
	p := in.GetPod()
	if p.GetNamespace() == "" || p.GetName() == "" {
		return al, kind, nil, fmt.Errorf("%w: the pod's namespace and name are needed", errInvalid)
	}
	began := time.Now()
	unlock, err := a.sandboxes.lock(ctx, k.ContainerID)
	a.metrics.waited(waitSandbox, began)
	if err != nil {
		return al, kind, nil, fmt.Errorf("%w: another request of sandbox %s is under way", podeni.ErrUnavailable, k.ContainerID)
	}
	defer unlock()
	if al, ok := a.store.Get(k); ok {
		// Asked again: the same answer, whatever is on or off by now.
		if al.Pod.UID == "" && p.GetNamespace() == al.Pod.Namespace && p.GetName() == al.Pod.Name {
			// It was taken over, and this is the first that tells its UID.
			if err := a.store.Settle(k, p.GetUid(), nil); err != nil {
				return al, kind, nil, err
			}
			al.Pod.UID = p.GetUid()
		}
		if p.GetUid() != "" && p.GetUid() != al.Pod.UID {
			return al, kind, nil, fmt.Errorf("sandbox %s: %w %s (%s)", k, store.ErrOtherPod, al.Pod, al.Pod.UID)
		}
		kind = kindOf(al)
		if len(al.Further) > 0 {
			if err := wiresSeveral(in); err != nil {
				return al, kind, nil, err
			}
		}
		a.forgetPast(ctx, al)
		r, err := a.reply(ctx, al)
		return al, kind, r, err
	}
	began = time.Now()
	pod, err := a.lookup.Find(ctx, p.GetNamespace(), p.GetName(), p.GetUid())
	a.metrics.waited(waitPod, began)
	if err != nil {
		return al, kind, nil, err
	}
	network := in.GetAttachment().GetNetworkName()
	several, err := a.several(in, pod)
	if kind = kindRegular; pod.Branch {
		kind = kindBranch
	}
	switch {
	case err != nil:
	case pod.Branch:
		al, err = a.addBranch(ctx, k, network, pod)
	default:
		if err = a.guardRegular(ctx, pod); err == nil {
			al, err = a.addRegular(ctx, k, network, store.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: identity(p, pod)}, several)
		}
	}
	if err != nil {
		return al, kind, nil, err
	}
	began = time.Now()
	a.forgetPast(ctx, al)
	a.metrics.waited(waitPast, began)
	r, err = a.reply(ctx, al)
	return al, kind, r, err
}

// identity is the UID that the runtime speaks of: a static pod's is not the one that its image in the API server has, which changes when
// somebody deletes that image.
func identity(asked *rpc.Pod, found kube.Pod) string {
	return cmp.Or(asked.GetUid(), found.MirrorOf, found.UID)
}

// guardRegular lets no pod through as a regular one that a policy gives security groups of its own.
func (a *Agent) guardRegular(ctx context.Context, pod kube.Pod) error {
	if a.guard == nil || slices.ContainsFunc(a.store.View().Allocations, func(al store.Allocation) bool { return pod.Is(al.Pod.UID) }) {
		return nil // another sandbox of it is here
	}
	err := a.guard.Regular(ctx, pod)
	if err != nil {
		a.metrics.failed("policy")
	}
	return err
}

func (a *Agent) addBranch(ctx context.Context, k store.Key, network string, pod kube.Pod) (al store.Allocation, err error) {
	who := pod.Namespace + "/" + pod.Name
	switch {
	case !a.opt.Config.PodENI:
		return al, fmt.Errorf("%w: pod %s asks for a branch ENI and ENABLE_POD_ENI is off on this node: turn it on in the aws-node DaemonSet, or keep the pod off this node", podeni.ErrRefused, who)
	case !a.supported():
		return al, fmt.Errorf("%w: pod %s asks for a branch ENI and instance type %s can't have a trunk ENI, or is not known to this version: run it on a type that can", podeni.ErrRefused, who, a.opt.Identity.InstanceType)
	}
	began := time.Now()
	b, _, err := a.assigned.Wait(ctx, pod)
	a.metrics.waited(waitAnnotation, began)
	if err != nil {
		return al, err
	}
	if b.Doubt != "" {
		a.opt.Log.Warn("the pod's annotation is odd; the pod is wired all the same", "pod", who, "why", b.Doubt)
	}
	began = time.Now()
	defer func() { a.metrics.waited(waitVLAN, began) }()
	for {
		changed := a.changed.C()
		al, err = a.store.AssignBranch(k, network, store.Pod{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID}, store.Branch{
			ENIID: b.ENIID, MAC: b.MAC.String(), VLAN: b.VLAN, Address: b.Address, SubnetCIDR: b.SubnetCIDR,
			Standard: a.opt.Config.EnforcingMode == config.ModeStandard,
		})
		switch {
		case err == nil:
			a.changed.Fire()
			a.branch.Fire()
			return al, nil
		case !errors.Is(err, store.ErrVLANHeld):
			return al, err
		}
		// The pod that had the id before is not torn down here yet: its end is waited for, never overtaken.
		select {
		case <-changed:
		case <-ctx.Done():
			return al, fmt.Errorf("%w: pod %s: %w", podeni.ErrUnavailable, who, err)
		}
	}
}

func (a *Agent) del(ctx context.Context, in *rpc.DelRequest) (al store.Allocation, found bool, err error) {
	k, err := keyOf(in.GetAttachment())
	if err != nil {
		return al, false, err
	}
	unlock, err := a.sandboxes.lock(ctx, k.ContainerID)
	if err != nil {
		return al, false, fmt.Errorf("%w: another request of sandbox %s is under way", podeni.ErrUnavailable, k.ContainerID)
	}
	defer unlock()
	al, found, err = a.free(ctx, k)
	if found && err == nil {
		a.ended(al)
	}
	return al, found, err
}

// ended wakes those who wait for what an allocation held.
func (a *Agent) ended(al store.Allocation) {
	a.forgetAsked(al.Key)
	a.changed.Fire()
	if al.Branch != nil {
		a.branch.Fire()
	}
}
