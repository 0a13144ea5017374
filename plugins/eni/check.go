package eni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/unary"
)

// askCheck is how long the agent's answer to a CHECK is waited for: an agent that is away is done without.
const askCheck = 5 * time.Second

// check compares the kernel with the plan that the agent's answer of today makes, and the plan with the result of ADD.
// The first difference is the error. Where the agent is away the sandbox's own marks are what is known.
func (o *operation) check(ctx context.Context) error {
	if err := errors.Join(o.configErr, o.podErr); err != nil {
		return err
	}
	prev, err := parsePrevious(o.config.PrevResult, o.args.IfName)
	if err != nil {
		return types.NewError(types.ErrDecodingFailure, err.Error(), "")
	}
	netns, err := openNetns(o.args.Netns)
	if err != nil {
		return err
	}
	defer netns.Close()
	if u := prev.upstream; u != nil {
		o.note("wiredBy", "upstream")
		return datapath.VerifyUpstream(ctx, *u, int(netns.Fd()))
	}
	plans, err := o.plansOfToday(ctx, prev)
	if err != nil {
		return err
	}
	if prev.known {
		if err := prev.compare(plans[0].plan); err != nil {
			return err
		}
	} else {
		o.note("prevResult", "none: only the kernel is compared")
	}
	var first error
	for _, w := range plans {
		err := datapath.Verify(ctx, w.plan, int(netns.Fd()))
		if err == nil {
			return nil
		}
		if first == nil {
			first = err
		}
	}
	return first
}

// plansOfToday are the plans of which one must hold.
func (o *operation) plansOfToday(ctx context.Context, prev previous) ([]wiring, error) {
	c := o.config
	// The pod keeps what it was wired with when the configuration changes.
	if prefix, ok := strings.CutSuffix(prev.hostVeth, datapath.HostVethName("", o.pod.Namespace, o.pod.Name)); ok && datapath.CheckVethPrefix(prefix) == nil {
		c.VethPrefix = prefix
	}
	for _, i := range prev.interfaces {
		if i.name == o.args.IfName && i.sandbox != "" && i.mtu >= minMTU {
			c.MTU = i.mtu
		}
	}
	reply, err := o.askToday(ctx)
	switch {
	case slices.Contains([]unary.Code{unary.Unavailable, unary.DeadlineExceeded, unary.Unimplemented}, unary.CodeOf(err)):
		o.note("agent", "away or older: compared with the marks and prevResult alone ("+messageOf(err)+")")
		w, err := o.recall(ctx, c)
		return []wiring{w}, err
	case err != nil:
		return nil, err
	}
	w, err := planReply(c, o.pod, o.owner, reply)
	if err != nil {
		return nil, err
	}
	plans := []wiring{w}
	if g := reply.GetRegular(); g != nil && g.GetRouteTable() == 0 && g.GetDeviceNumber() > 0 {
		// Wired before the agent's marks chose the table: the rule of that time leads to the same one.
		older := &rpc.AddReply{Version: reply.GetVersion(), Interface: &rpc.AddReply_Regular{Regular: &rpc.RegularInterface{
			Address: g.GetAddress(), EniId: g.GetEniId(), DeviceNumber: g.GetDeviceNumber(), RouteTable: g.GetDeviceNumber() + 1,
			NetworkCard: g.GetNetworkCard(),
		}}, Further: reply.GetFurther()}
		if w, err := planReply(c, o.pod, o.owner, older); err == nil {
			plans = append(plans, w)
		}
	}
	return plans, nil
}

func (o *operation) askToday(ctx context.Context) (*rpc.AddReply, error) {
	client, err := rpc.Dial(o.config.Socket)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(ctx, askCheck)
	defer cancel()
	return client.Check(ctx, &rpc.CheckRequest{Version: rpc.Version, Pod: o.pod.message(), Attachment: o.attachment()})
}

// recall makes the plan from what the sandbox's links say of themselves.
func (o *operation) recall(ctx context.Context, c Config) (w wiring, err error) {
	r, err := datapath.Recall(ctx, datapath.Request{
		Owner: o.owner, PodNamespace: o.pod.Namespace, PodName: o.pod.Name, VethPrefix: c.VethPrefix, MTU: c.MTU,
	}, o.hostVeths(c))
	if err != nil {
		return w, err
	}
	w.address = r.Address
	if r.Branch != nil {
		w.vlan = r.Branch.VLAN
	}
	if w.plan, err = datapath.NewPlan(r); err != nil {
		return w, fmt.Errorf("plan from the sandbox's marks: %w", err)
	}
	if r.Regular != nil {
		// Whether the pod's ENI needs a rule of its own is the agent's to say.
		w.plan.Steps = slices.DeleteFunc(w.plan.Steps, func(s datapath.Step) bool {
			d, ok := s.(datapath.DeleteRule)
			return ok && d.Priority == datapath.PriorityFromPod
		})
	}
	return w, nil
}

// hostVeths are the names that the pod's host veth may have.
func (o *operation) hostVeths(c Config) []string {
	var names []string
	for _, prefix := range []string{c.VethPrefix, datapath.BranchVethPrefix} {
		names = append(names, datapath.HostVethName(prefix, o.pod.Namespace, o.pod.Name))
	}
	return names
}

// compare says what of the plan the result of ADD does not have. Chained plugins may have put more into it.
func (p previous) compare(plan datapath.Plan) error {
	var want []previousInterface
	addresses := []netip.Addr{plan.Address}
	ends := func(veth datapath.AddVeth) {
		want = append(want, previousInterface{name: veth.Host, mac: veth.HostMAC.String()}, previousInterface{name: veth.Pod, mac: veth.PodMAC.String(), sandbox: "the pod's"})
	}
	ends(plan.HostVeth)
	if v := plan.VLAN; v != nil {
		want = append(want, previousInterface{name: v.Name, mac: v.MAC.String()})
	}
	for _, veth := range plan.Further {
		ends(veth)
		addresses = append(addresses, veth.Mark.Address)
	}
	for _, w := range want {
		inPod := w.sandbox != ""
		what := fmt.Sprintf("interface %s of prevResult", w.name)
		at := slices.IndexFunc(p.interfaces, func(i previousInterface) bool { return i.name == w.name && (i.sandbox != "") == inPod })
		if at < 0 {
			return &datapath.Difference{Object: what, Is: "missing, and the sandbox should have it"}
		}
		// A chained plugin (tuning) may have given the pod's end another MAC: the kernel is compared with the plan all the same.
		if has, err := net.ParseMAC(p.interfaces[at].mac); !inPod && (err != nil || has.String() != w.mac) {
			return &datapath.Difference{Object: what, Is: fmt.Sprintf("has the address %q, and should have %s", p.interfaces[at].mac, w.mac)}
		}
	}
	for _, a := range addresses {
		if !slices.Contains(p.addresses, a) {
			return &datapath.Difference{Object: fmt.Sprintf("address %s of prevResult", a), Is: fmt.Sprintf("missing: it has %v", p.addresses)}
		}
	}
	for _, f := range p.further {
		if f.Number > len(plan.Further) {
			return &datapath.Difference{Object: fmt.Sprintf("interface %s of prevResult", datapath.FurtherIfName(f.Number)), Is: "one that the sandbox should not have"}
		}
	}
	return nil
}
