package ipamd

import (
	"context"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// route puts the host's routing in place.
func (a *Agent) route(ctx context.Context) (err error) {
	defer func() { a.noteRouteError(err) }()
	all := a.inventory.ENIs()
	if len(all) == 0 {
		return nil
	}
	d, left, err := a.desired(ctx, all)
	if err != nil {
		return err
	}
	r, err := a.opt.Routing.Reconcile(ctx, d)
	if len(r.Ops) > 0 {
		a.metrics.reconciles.WithLabelValues("hostNetwork").Inc()
	}
	for _, op := range r.Ops {
		a.opt.Log.Info("host routing changed", "op", op.String())
	}
	if err != nil {
		return err
	}
	a.sayMissing(r)
	a.noteRouting(all, d, left, r)
	if r.NAT == nil && (len(d.NAT.VPC) > 0 || !d.NAT.Source && !d.NAT.NodePort) {
		a.removeFormerNAT(ctx)
	}
	return a.mournOrphans()
}

// removeFormerNAT removes the rules of the agent that this node had before. What fails is tried with the next change.
func (a *Agent) removeFormerNAT(ctx context.Context) {
	if a.formerNATGone || a.opt.RemoveFormerNAT == nil {
		return
	}
	removed, left, err := a.opt.RemoveFormerNAT(ctx)
	if len(removed) > 0 {
		a.opt.Log.Info("rules of another agent are removed from netfilter", "removed", removed)
	}
	if err != nil {
		a.metrics.failed("takeOver")
		a.opt.Log.Warn("rules of another agent in netfilter can't be removed; they do no harm beside this agent's", "error", err)
		return
	}
	if len(left) > 0 {
		a.opt.Log.Warn("rules of another agent are left in netfilter; they do no harm beside this agent's", "left", left)
		a.events.Node("FormerNATLeft", "rules of another node agent are left in netfilter: %s; they do no harm beside this agent's, and go with the instance", strings.Join(left, "; "))
	}
	a.formerNATGone = true
}

// sayMissing tells people once what this host can't do, though the rest works.
func (a *Agent) sayMissing(r hostnet.Result) {
	say := func(was *string, err error, reason, consequence string) {
		now := ""
		if err != nil {
			now = err.Error()
		}
		if now != *was && err != nil {
			a.metrics.failed("routing")
			a.opt.Log.Error(consequence, "error", err)
			a.events.Node(reason, "%s: %v", consequence, err)
		}
		*was = now
	}
	say(&a.unmarked, r.Marks, "NFTablesMissing", "packets can't be marked by their ENI; pods on secondary ENIs get a routing rule each, which slows the node down as they become more")
	say(&a.untranslated, r.NAT, "SourceNATMissing", "source NAT and the answers of NodePort are not in place as configured; pods may not reach what is outside the VPC")
	say(&a.kubeletAway, r.Kubelet, "KubeletNotLocal", "BRANCHLINE_KUBELET_LOCAL is on and the kubelet's connections to branch pods still pass the pods' security groups")
}

// desired is the routing that the ENIs, the mode and what is left of branch pods ask for.
func (a *Agent) desired(ctx context.Context, all []enis.ENI) (d hostnet.Desired, branchesLeft bool, err error) {
	view := a.store.View()
	branchesLeft = slices.ContainsFunc(view.Allocations, func(al store.Allocation) bool { return al.Branch != nil })
	if !branchesLeft {
		vlans, err := a.opt.Links.VLANs(ctx)
		if err != nil {
			return d, false, err
		}
		branchesLeft = len(vlans) > 0
	}
	c := a.opt.Config
	d = hostnet.Desired{
		IPv6: c.IPv6, NodeLocal: c.NodeLocal, KubeletLocal: c.KubeletLocal, VethPrefix: c.VethPrefix,
		NAT: natOf(c, all), External: c.ExternalServices.Prefixes(), Egress: c.EgressSubnet(),
	}
	if d.LocalBehindPods, err = a.strictPods(ctx); err != nil {
		return d, false, err
	}
	held := map[string][]netip.Prefix{}
	for _, al := range view.Allocations {
		for _, r := range al.Regulars() {
			if !r.Settled() {
				continue
			}
			held[r.ENIID] = append(held[r.ENIID], netip.PrefixFrom(r.Address, r.Address.BitLen()))
			if s := (hostnet.Slot{Card: r.Card, Device: r.Device}); !slices.Contains(d.InUse, s) {
				d.InUse = append(d.InUse, s)
			}
		}
	}
	for _, e := range all {
		if !e.Usable() {
			continue
		}
		// What pods hold is routed as they hold it, also while a source shows fewer addresses.
		prefixes := e.Units()
		for _, h := range held[e.ID] {
			if !e.Owns(h.Addr()) {
				prefixes = append(prefixes, h)
			}
		}
		if len(e.Addresses)+len(prefixes) == 0 {
			continue
		}
		d.ENIs = append(d.ENIs, hostnet.ENI{
			Card: e.Card, Device: e.Device, LinkIndex: e.LinkIndex, Primary: e.PrimaryAddress(), Gateway: e.Gateway(), Prefixes: prefixes,
		})
	}
	return d, branchesLeft, nil
}

// natOf is what the configuration asks for of source NAT and NodePort, with the VPC as the primary ENI shows it.
func natOf(c *config.Config, all []enis.ENI) hostnet.NAT {
	n := hostnet.NAT{Source: !c.ExternalSNAT, Excluded: c.ExcludeSNAT.Prefixes(), NodePort: c.NodePort, ConnMark: c.ConnMark}
	switch c.RandomizeSNAT {
	case "hashrandom":
		n.Ports = hostnet.PortsHashed
	case "none":
		n.Ports = hostnet.PortsKept
	}
	if at := slices.IndexFunc(all, enis.ENI.Primary); at >= 0 {
		n.VPC = all[at].VPC
	}
	return n
}

func (a *Agent) noteRouting(all []enis.ENI, d hostnet.Desired, branchesLeft bool, r hostnet.Result) {
	routed := map[string]hostnet.ENI{}
	for _, e := range all {
		at := slices.IndexFunc(d.ENIs, func(r hostnet.ENI) bool { return r.LinkIndex == e.LinkIndex && r.Slot() == slotOf(e) })
		if at >= 0 {
			routed[e.ID] = d.ENIs[at]
		}
	}
	a.mu.Lock()
	changed := !a.listed || a.branches != branchesLeft || a.strict != d.LocalBehindPods || a.marked != (r.Marks == nil) ||
		!maps.EqualFunc(routed, a.routed, func(a, b hostnet.ENI) bool { return slices.Equal(a.Prefixes, b.Prefixes) })
	a.routed, a.listed, a.branches, a.strict, a.marked = routed, true, branchesLeft, d.LocalBehindPods, r.Marks == nil
	for id := range a.joining {
		if slices.ContainsFunc(all, func(e enis.ENI) bool { return e.ID == id }) {
			delete(a.joining, id)
		}
	}
	a.mu.Unlock()
	if changed {
		a.changed.Fire()
	}
}

// routeTable is the table that a rule of the pod's own has to name: 0, no rule, where the pod's packets are marked by their ENI.
func (a *Agent) routeTable(r *store.Regular) uint32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.marked && (hostnet.Slot{Card: r.Card, Device: r.Device}).Mark() != 0 {
		return 0
	}
	return uint32(r.RouteTable)
}
