package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// PriorityToPod is that of upstream's rule that keeps what goes to a pod from every other table.
const PriorityToPod = 512

// Upstream is a sandbox that the CNI plugin of before has wired, as its result tells it. Its links carry no mark, so
// that nothing but the result says whose they are.
//
// What it leaves on the host. A regular pod: the address in the main table, the rules PriorityToPod to the address and,
// on a secondary ENI, PriorityFromPod from it. A branch pod: the VLAN link and its table; in strict mode the address in
// that table and two iif rules, in standard mode what a regular pod has, with the VLAN's table.
type Upstream struct {
	PodNamespace, PodName string
	HostVeth, IfName      string
	Address               netip.Addr
	VLAN                  int // 0: a regular pod
	Table                 int // of a regular pod's ENI, as the result tells it; 0: it does not
}

func (u Upstream) strict() bool {
	return u.VLAN != 0 && strings.HasPrefix(u.HostVeth, BranchVethPrefix)
}

func (u Upstream) rule(priority int) Rule { return Rule{IPv6: u.Address.Is6(), Priority: priority} }

func (u Upstream) toPod() Rule {
	r := toAddress(u.Address)
	r.Table = MainTable
	return r
}

func (u Upstream) fromPod(table int) Rule {
	r := u.rule(PriorityFromPod)
	r.From, r.Table = u.Address, table
	return r
}

func (u Upstream) iif(link string) Rule {
	r := u.rule(PriorityBranch)
	r.Iif, r.Table = link, VLANTable(u.VLAN)
	return r
}

// upstreamView is what a teardown of such a sandbox decides by.
type upstreamView struct {
	veth, vlan observed
	// routes are the single addresses in the main table, the table of local pods and the VLAN's, with the link's index.
	routes []addressRoute
	rules  []Rule
}

type addressRoute struct {
	table, index int
	address      netip.Addr
}

// steps decides what goes. A link without any mark is the sandbox's only if no other address than the sandbox's leads
// over it: names and VLAN ids are used again, and this DEL may be late.
func (u Upstream) steps(v upstreamView) []Step {
	unmarked := func(o observed) bool { return o.index != 0 && o.mark.ContainerID == "" }
	leadsTo := func(index, table int) (own, others bool) {
		for _, r := range v.routes {
			if r.index == index && (table == 0 || r.table == table) {
				own, others = own || r.address == u.Address, others || r.address != u.Address
			}
		}
		return own, others
	}
	on := func(table int) (index int) {
		for _, r := range v.routes {
			if r.table == table && r.address == u.Address {
				index = r.index
			}
		}
		return index
	}
	_, other := leadsTo(v.veth.index, 0)
	veth := unmarked(v.veth) && !other
	free := func(o observed, mine bool) bool { return o.index == 0 || mine }
	var steps []Step
	if !u.strict() {
		if at := on(MainTable); at == 0 || veth && at == v.veth.index {
			steps = append(steps, DeleteRule{u.toPod()})
			if on(LocalPodsTable) == 0 {
				steps = append(steps, DeleteRule{u.fromPod(0)})
			}
		}
	}
	vlan := false
	if u.VLAN != 0 {
		vlan = unmarked(v.vlan) && !u.vlanIsAnothers(v)
	}
	if u.strict() {
		if free(v.vlan, vlan) {
			steps = append(steps, DeleteRule{u.iif(VLANLinkName(u.VLAN))})
		}
		if free(v.veth, veth) {
			steps = append(steps, DeleteRule{u.iif(u.HostVeth)})
		}
	}
	if veth {
		steps = append(steps, DeleteLink{u.HostVeth})
	}
	if vlan {
		steps = append(steps, DeleteLink{VLANLinkName(u.VLAN)})
	}
	return steps
}

// vlanIsAnothers says whether the VLAN's table serves another pod by now: it leads to that pod's address, or a rule from
// that address, or from that pod's link, leads to it.
func (u Upstream) vlanIsAnothers(v upstreamView) bool {
	table := VLANTable(u.VLAN)
	for _, r := range v.routes {
		if r.table == table && r.address != u.Address && r.index != v.vlan.index {
			return true // by the VLAN link itself it is the gateway
		}
	}
	for _, r := range v.rules {
		if r.Table != table {
			continue
		}
		if r.From.IsValid() && r.From != u.Address || r.Iif != "" && r.Iif != u.HostVeth && r.Iif != VLANLinkName(u.VLAN) {
			return true
		}
	}
	return false
}

// TeardownUpstream removes what the plugin of before has wired for a sandbox. It may run any number of times, and touches
// no link that has a mark of ours or that serves another address.
func TeardownUpstream(ctx context.Context, u Upstream, lock *Lock) (Removed, error) {
	removed := Removed{VLAN: u.VLAN, Address: u.Address}
	if u.PodName != "" {
		if err := lock.Pod(ctx, u.PodNamespace, u.PodName); err != nil {
			return removed, err
		}
	}
	if u.VLAN != 0 {
		if err := lock.VLAN(ctx, u.VLAN); err != nil {
			return removed, err
		}
	}
	k, err := openKernel(ctx, Owner{}, -1)
	if err != nil {
		return removed, err
	}
	defer k.close()
	v, err := k.upstreamView(ctx, u)
	if err != nil {
		return removed, err
	}
	k.index[Host][u.HostVeth] = v.veth.index
	if u.VLAN != 0 {
		k.index[Host][VLANLinkName(u.VLAN)] = v.vlan.index
	}
	var errs []error
	for _, step := range u.steps(v) {
		if d, ok := step.(DeleteLink); ok {
			removed.Links = append(removed.Links, d.Name)
		}
		if err := k.do(step); err != nil {
			errs = append(errs, err)
		}
	}
	return removed, errors.Join(append(errs, k.flush())...)
}

func (k *kernel) upstreamView(ctx context.Context, u Upstream) (v upstreamView, err error) {
	if v.veth, err = k.observe(u.HostVeth, Owner{}); err != nil {
		return v, err
	}
	if u.VLAN != 0 {
		if v.vlan, err = k.observe(VLANLinkName(u.VLAN), Owner{}); err != nil {
			return v, err
		}
	}
	h, err := hostHandle(ctx)
	if err != nil {
		return v, err
	}
	defer h.Close()
	fam := int(family(u.Address.Is6()))
	rules, err := dumped(ctx, func() ([]netlink.Rule, error) { return h.RuleList(fam) })
	if err != nil {
		return v, fmt.Errorf("list the rules: %w", err)
	}
	for _, r := range rules {
		if rule, plain := ruleOf(r); plain {
			v.rules = append(v.rules, rule)
		}
	}
	tables := []int{MainTable, LocalPodsTable}
	if u.VLAN != 0 {
		tables = append(tables, VLANTable(u.VLAN))
	}
	for _, table := range tables {
		routes, err := dumped(ctx, func() ([]netlink.Route, error) {
			return h.RouteListFiltered(fam, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return v, fmt.Errorf("list the routes of table %d: %w", table, err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Type != unix.RTN_UNICAST {
				continue
			}
			if p := prefixOf(r.Dst); p.IsSingleIP() {
				v.routes = append(v.routes, addressRoute{table, r.LinkIndex, p.Addr()})
			}
		}
	}
	return v, nil
}

// VerifyUpstream compares the kernel with what the plugin of before makes. The error is the first *Difference, or says
// what the kernel could not be asked.
func VerifyUpstream(ctx context.Context, u Upstream, podNS int) error {
	v, err := openVerifier(ctx, podNS)
	if err != nil {
		return err
	}
	defer v.close()
	host, d, err := v.upstreamVeth(u)
	if d != nil || err != nil {
		return orError(d, err)
	}
	gateway := PodGateway(u.Address)
	steps := []Step{
		AddAddress{Pod, u.IfName, single(u.Address)},
		AddNeighbour{Pod, u.IfName, gateway, host.Attrs().HardwareAddr},
		AddRoute{Side: Pod, Table: MainTable, Dst: single(gateway), Link: u.IfName},
		AddRoute{Side: Pod, Table: MainTable, Dst: everywhere(u.Address), Gateway: gateway, Link: u.IfName},
	}
	table := u.Table
	if u.VLAN != 0 {
		table = VLANTable(u.VLAN)
		if d, err := v.upstreamVLAN(u); d != nil || err != nil {
			return orError(d, err)
		}
	}
	if u.strict() {
		steps = append(steps, AddRoute{Table: table, Dst: single(u.Address), Link: u.HostVeth},
			AddRule{u.iif(VLANLinkName(u.VLAN))}, AddRule{u.iif(u.HostVeth)})
	} else {
		steps = append(steps, AddRoute{Table: MainTable, Dst: single(u.Address), Link: u.HostVeth}, AddRule{u.toPod()})
		if table != 0 && table != MainTable {
			steps = append(steps, AddRule{u.fromPod(table)})
		}
	}
	return v.all(steps)
}

func orError(d *Difference, err error) error {
	if err != nil {
		return err
	}
	return d
}

func (v *verifier) upstreamVeth(u Upstream) (netlink.Link, *Difference, error) {
	what := fmt.Sprintf("veth %s with peer %s in the pod", u.HostVeth, u.IfName)
	host, err := v.link(Host, u.HostVeth)
	if host == nil || err != nil {
		return nil, &Difference{what, missing}, err
	}
	pod, err := v.link(Pod, u.IfName)
	if pod == nil || err != nil {
		return nil, &Difference{what, "the pod's end is " + missing}, err
	}
	is := attributesOf(host.Attrs(), host.Attrs().HardwareAddr, 0)
	switch {
	case marked(host):
		is = fmt.Sprintf("is marked %q: another sandbox has the name", host.Attrs().Alias)
	case host.Type() != "veth" || host.Attrs().ParentIndex != pod.Attrs().Index:
		is = fmt.Sprintf("its peer is not %s of this pod", u.IfName)
	case is == "":
		if is = attributesOf(pod.Attrs(), pod.Attrs().HardwareAddr, 0); is != "" {
			is = "the pod's end " + is
		}
	}
	if is != "" {
		return nil, &Difference{what, is}, nil
	}
	return host, nil, nil
}

func marked(l netlink.Link) bool {
	_, err := ParseMark(l.Attrs().Alias)
	return err == nil
}

func (v *verifier) upstreamVLAN(u Upstream) (*Difference, error) {
	name := VLANLinkName(u.VLAN)
	what := fmt.Sprintf("VLAN link %s (id %d)", name, u.VLAN)
	l, err := v.link(Host, name)
	if l == nil || err != nil {
		return &Difference{what, missing}, err
	}
	vlan, ok := l.(*netlink.Vlan)
	is := ""
	switch {
	case !ok:
		is = "is a " + l.Type()
	case vlan.VlanId != u.VLAN:
		is = fmt.Sprintf("has id %d", vlan.VlanId)
	case marked(vlan):
		is = fmt.Sprintf("is marked %q: another sandbox has the VLAN id", vlan.Alias)
	default:
		is = attributesOf(vlan.Attrs(), vlan.HardwareAddr, 0)
	}
	if is != "" {
		return &Difference{what, is}, nil
	}
	gateway, err := v.gatewayOf(VLANTable(u.VLAN), l.Attrs().Index, u.Address)
	if err == nil && !gateway.IsValid() {
		return &Difference{fmt.Sprintf("route default dev %s table %d (host)", name, VLANTable(u.VLAN)), missing}, nil
	}
	return nil, err
}

// gatewayOf is the gateway of the default route that a table has over a link; invalid where it has none.
func (v *verifier) gatewayOf(table, index int, address netip.Addr) (netip.Addr, error) {
	routes, err := dumped(v.ctx, func() ([]netlink.Route, error) {
		return v.handles[Host].RouteListFiltered(int(family(address.Is6())), &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return netip.Addr{}, err
	}
	for _, r := range routes {
		if r.LinkIndex == index && (r.Dst == nil || prefixOf(r.Dst).Bits() == 0) {
			gateway, _ := netip.AddrFromSlice(r.Gw)
			return gateway.Unmap(), nil
		}
	}
	return netip.Addr{}, nil
}
