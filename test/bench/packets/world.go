package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
)

// layout is one way to route pods on the node.
type layout struct {
	name string
	// pods is done for a node with its pods' addresses; the branch pods' own rules are the same in all.
	pods func(w *world, ctx context.Context) error
	// validMark lets reverse-path checks see the packet's mark (src_valid_mark), as the init container sets it.
	validMark bool
}

const (
	ours     = "ours"
	twoRules = "two rules per pod"
)

var layouts = []layout{
	{"no pods' rules at all", (*world).bare, false},
	{ours, (*world).ours, true},
	{twoRules, (*world).twoRules, false},
	{"ours, nothing translated", (*world).untranslated, true},
	{"ours, reverse path without mark", (*world).ours, false},
	{"ours, without goto", (*world).withoutGoto, true},
	{"a rule per /28, no nftables", (*world).rulePerPrefix, false},
}

// world is a node between a client and the last of its regular pods and, where there are branch pods, the last of those.
type world struct {
	layout                    layout
	regular, branch           int
	node, client, pod, strict *namespace
	addresses                 []netip.Addr // of the regular pods
	probes                    []*probe
	samples                   map[string][]float64 // by measure, one per round
}

var (
	clientAddr  = netip.MustParseAddr("10.200.0.2")
	eniAddr     = netip.MustParseAddr("10.200.0.3")
	primaryAddr = netip.MustParseAddr("10.201.0.3")
	routerAddr  = netip.MustParseAddr("10.201.0.2")
	vlanClient  = netip.MustParseAddr("10.202.0.2")
	strictAddr  = netip.MustParseAddr("10.202.0.77")
)

const (
	eniDevice  = 1
	hostVeth   = "eni00000000000"
	otherVeth  = "eni00000000001" // stands for the host veths of all other pods
	strictVeth = "vlan0000000000a"
)

func newWorld(ctx context.Context, l layout, regular, branch int) (w *world, err error) {
	w = &world{layout: l, regular: regular, branch: branch, samples: map[string][]float64{}}
	defer func() {
		if err != nil {
			w.close()
		}
	}()
	for _, n := range []**namespace{&w.node, &w.client, &w.pod, &w.strict} {
		if *n, err = newNamespace(); err != nil {
			return nil, err
		}
	}
	valid := "0"
	if l.validMark {
		valid = "1"
	}
	if err := w.node.set(map[string]string{
		"ipv4/ip_forward": "1", "ipv4/conf/all/rp_filter": "2", "ipv4/conf/default/rp_filter": "2", "ipv4/conf/all/src_valid_mark": valid,
		"ipv4/tcp_early_demux": "0", "ipv4/udp_early_demux": "0",
	}); err != nil {
		return nil, err
	}
	for i := range regular {
		w.addresses = append(w.addresses, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	last := w.addresses[regular-1]
	steps := []func() error{
		func() error { return w.node.veth("eth0", primaryAddr, w.client, "p0", routerAddr) },
		func() error { return w.node.veth("ens6", eniAddr, w.client, "p6", clientAddr) },
		func() error {
			return w.node.veth(otherVeth, linkGateway, w.client, "others", netip.MustParseAddr("10.203.0.2"))
		},
		func() error { return w.wirePod(w.pod, hostVeth, last) },
		func() error { return w.node.route("eth0", routerAddr, netip.Addr{}, hostnet.MainTable) },
		func() error { return w.node.route("eth0", netip.Addr{}, routerAddr, hostnet.MainTable) },
		func() error { return w.client.route("p6", last, eniAddr, hostnet.MainTable) },
		func() error { return w.branchPods() },
		func() error { return l.pods(w, ctx) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return w, w.openProbes(last)
}

func (w *world) close() {
	for _, p := range w.probes {
		p.close()
	}
	for _, n := range []*namespace{w.node, w.client, w.pod, w.strict} {
		if n != nil {
			n.close()
		}
	}
}

func (w *world) wirePod(ns *namespace, veth string, a netip.Addr) error {
	if err := w.node.veth(veth, linkGateway, ns, "eth0", a); err != nil {
		return err
	}
	return errors.Join(ns.route("eth0", linkGateway, netip.Addr{}, hostnet.MainTable), ns.route("eth0", netip.Addr{}, linkGateway, hostnet.MainTable))
}

// branchPods makes the two rules of each strict pod. Only the last has links: rules on links that are not there are
// walked all the same.
func (w *world) branchPods() error {
	if w.branch == 0 {
		return nil
	}
	vlan := fmt.Sprintf("vlan.eth.%d", w.branch)
	if err := w.node.veth(vlan, linkGateway, w.client, "p1.7", vlanClient); err != nil {
		return err
	}
	if err := w.wirePod(w.strict, strictVeth, strictAddr); err != nil {
		return err
	}
	table := 100 + w.branch
	errs := []error{
		w.client.route("p1.7", strictAddr, linkGateway, hostnet.MainTable),
		w.node.route(vlan, netip.Addr{}, vlanClient, table),
		w.node.route(strictVeth, strictAddr, netip.Addr{}, table),
		w.node.route(strictVeth, strictAddr, netip.Addr{}, hostnet.StrictPodsTable),
	}
	for i := 1; i <= w.branch; i++ {
		veth := fmt.Sprintf("vlan%011d", i)
		if i == w.branch {
			veth = strictVeth
		}
		for _, link := range []string{fmt.Sprintf("vlan.eth.%d", i), veth} {
			errs = append(errs, w.node.rule(hostnet.StrictPriority, 100+i, func(r *netlink.Rule) { r.IifName = link }))
		}
	}
	return errors.Join(errs...)
}

// podRoutes fills a table with the pods' routes.
func (w *world) podRoutes(table int) error {
	for i, a := range w.addresses {
		link := otherVeth
		if i == len(w.addresses)-1 {
			link = hostVeth
		}
		if err := w.node.route(link, a, netip.Addr{}, table); err != nil {
			return err
		}
	}
	return nil
}

// bare is what routing costs without any rule for pods: the least that is possible.
func (w *world) bare(context.Context) error {
	if err := w.moveLocal(); err != nil {
		return err
	}
	return errors.Join(w.podRoutes(hostnet.MainTable), w.node.route("ens6", clientAddr, netip.Addr{}, hostnet.MainTable))
}

// moveLocal puts the kernel's local rule behind those of strict pods.
func (w *world) moveLocal() error {
	if w.branch == 0 {
		return nil
	}
	if err := w.node.rule(hostnet.LocalPriorityStrict, hostnet.LocalTable, func(*netlink.Rule) {}); err != nil {
		return err
	}
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = netlink.FAMILY_V4, hostnet.LocalPriority, hostnet.LocalTable
	return w.node.h.RuleDel(r)
}

func (w *world) ours(ctx context.Context) error {
	return w.reconcile(ctx, hostnet.NAT{Source: true, NodePort: true, ConnMark: 0x80, VPC: []netip.Prefix{netip.MustParsePrefix("10.200.0.0/14")}})
}

func (w *world) untranslated(ctx context.Context) error { return w.reconcile(ctx, hostnet.NAT{}) }

func (w *world) reconcile(ctx context.Context, nat hostnet.NAT) error {
	if err := w.podRoutes(hostnet.PodsTable); err != nil {
		return err
	}
	return w.node.do(func() error {
		k, err := hostnet.NewKernel()
		if err != nil {
			return err
		}
		defer k.Close()
		d := hostnet.Desired{LocalBehindPods: w.branch > 0, VethPrefix: "eni", NAT: nat}
		if d.LocalBehindPods {
			d.NodeLocal = []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32"), netip.MustParsePrefix("169.254.170.23/32")}
		}
		eth0, err := w.node.h.LinkByName("eth0")
		if err != nil {
			return err
		}
		ens6, err := w.node.h.LinkByName("ens6")
		if err != nil {
			return err
		}
		eni := hostnet.ENI{Device: eniDevice, LinkIndex: ens6.Attrs().Index, Primary: eniAddr, Gateway: clientAddr}
		for _, a := range w.addresses {
			eni.Prefixes = append(eni.Prefixes, single(a))
		}
		d.ENIs = []hostnet.ENI{{Device: 0, LinkIndex: eth0.Attrs().Index, Primary: primaryAddr, Gateway: routerAddr}, eni}
		r, err := k.Reconcile(ctx, d)
		return errors.Join(err, r.Marks, r.NAT)
	})
}

func (w *world) withoutGoto(ctx context.Context) error {
	if err := w.ours(ctx); err != nil {
		return err
	}
	for range 2 { // the kernel takes one at a time
		if w.branch > 0 {
			r := netlink.NewRule()
			r.Family, r.Priority = netlink.FAMILY_V4, hostnet.SkipPriority
			if err := w.node.h.RuleDel(r); err != nil {
				return fmt.Errorf("delete the goto: %w", err)
			}
		}
	}
	return nil
}

// eniTable fills the secondary ENI's table.
func (w *world) eniTable() error {
	table := hostnet.Slot{Device: eniDevice}.Table()
	return errors.Join(w.node.route("ens6", clientAddr, netip.Addr{}, table), w.node.route("ens6", netip.Addr{}, clientAddr, table))
}

// twoRules is one rule to each pod and one from it.
func (w *world) twoRules(context.Context) error {
	errs := []error{w.moveLocal(), w.podRoutes(hostnet.MainTable), w.eniTable()}
	for _, a := range w.addresses {
		errs = append(errs,
			w.node.rule(hostnet.PodsPriority, hostnet.MainTable, func(r *netlink.Rule) { r.Dst = ipNet(single(a)) }),
			w.node.rule(hostnet.MarkPriority, hostnet.Slot{Device: eniDevice}.Table(), func(r *netlink.Rule) { r.Src = ipNet(single(a)) }))
	}
	return errors.Join(errs...)
}

// rulePerPrefix is our table of local pods, and one rule from each /28 instead of marks.
func (w *world) rulePerPrefix(context.Context) error {
	errs := []error{w.moveLocal(), w.podRoutes(hostnet.PodsTable), w.eniTable(),
		w.node.rule(hostnet.PodsPriority, hostnet.PodsTable, func(*netlink.Rule) {})}
	if w.branch > 0 {
		errs = append(errs, w.node.rule(hostnet.SkipPriority, 0, func(r *netlink.Rule) { r.IifName, r.Goto = "lo", hostnet.LocalPriorityStrict }))
	}
	seen := map[netip.Prefix]bool{}
	for _, a := range w.addresses {
		p := netip.PrefixFrom(a, 28).Masked()
		if !seen[p] {
			seen[p] = true
			errs = append(errs, w.node.rule(hostnet.MarkPriority, hostnet.Slot{Device: eniDevice}.Table(), func(r *netlink.Rule) { r.Src = ipNet(p) }))
		}
	}
	return errors.Join(errs...)
}
