package hostnet

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// Kernel reads and changes the routing of the network namespace that it was made in.
type Kernel struct {
	h   *netlink.Handle
	mu  sync.Mutex // one Reconcile at a time
	nft nft
}

// NewKernel opens a netlink socket in the current network namespace.
func NewKernel() (*Kernel, error) {
	h, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	k := &Kernel{h: h}
	if err := k.nft.open(); err != nil && !errors.Is(err, ErrNoNFTables) {
		h.Close()
		return nil, err
	}
	return k, nil
}

// Close closes the sockets.
func (k *Kernel) Close() {
	k.h.Close()
	k.nft.close()
}

func netlinkFamily(ipv6 bool) int {
	if ipv6 {
		return netlink.FAMILY_V6
	}
	return netlink.FAMILY_V4
}

// routing reads the rules of one family, and the routes of the tables that belong to ENIs: all that those of card 0 may have,
// and of the further cards' those that are desired or that a rule of ours leads to.
func (k *Kernel) routing(d Desired) (a Actual, err error) {
	ipv6 := d.IPv6
	rules, err := rtnl.Dump(func() ([]netlink.Rule, error) { return k.h.RuleList(netlinkFamily(ipv6)) })
	if err != nil {
		return a, fmt.Errorf("list the routing rules: %w", err)
	}
	for _, r := range rules {
		if rule, ok := fromKernel(r); ok {
			a.Rules = append(a.Rules, rule)
		}
	}
	tables := map[int]bool{}
	for table := 2; table <= maxDevices; table++ {
		tables[table] = true
	}
	for _, r := range a.Rules {
		if r.Ours && isFurther(r.Table) {
			tables[r.Table] = true
		}
	}
	for _, s := range d.slots() {
		if s.Card > 0 {
			tables[s.Table()] = true
		}
	}
	for _, table := range slices.Sorted(maps.Keys(tables)) {
		routes, err := k.routes(table, ipv6)
		if err != nil {
			return a, err
		}
		a.Routes = append(a.Routes, routes...)
	}
	return a, nil
}

// fromKernel leaves out the rules that select by what this package never uses: they are somebody else's.
func fromKernel(r netlink.Rule) (Rule, bool) {
	if r.OifName != "" || r.Invert || r.Tos != 0 || r.TunID != 0 || r.UIDRange != nil || r.Sport != nil || r.Dport != nil ||
		r.SuppressPrefixlen >= 0 || r.SuppressIfgroup >= 0 {
		return Rule{}, false
	}
	out := Rule{
		Priority: max(0, r.Priority), Iif: r.IifName, Mark: r.Mark, IPProto: r.IPProto,
		Goto: max(0, r.Goto), Table: r.Table, Ours: r.Protocol == Protocol,
	}
	if r.Mask != nil {
		out.Mask = *r.Mask
	}
	if out.Goto != 0 {
		out.Table = 0
	}
	for _, p := range []struct {
		from *net.IPNet
		to   *netip.Prefix
	}{{r.Src, &out.From}, {r.Dst, &out.To}} {
		if p.from != nil {
			var ok bool
			if *p.to, ok = prefix(p.from); !ok {
				return Rule{}, false
			}
		}
	}
	return out, true
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP)
	ones, bits := n.Mask.Size()
	if ok && bits == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, ones), ok && bits == addr.BitLen()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func (k *Kernel) routes(table int, ipv6 bool) ([]Route, error) {
	list, err := rtnl.Dump(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(netlinkFamily(ipv6), &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes of table %d: %w", table, err)
	}
	var out []Route
	for _, r := range list {
		route := Route{Table: table, LinkIndex: r.LinkIndex, Ours: r.Protocol == Protocol, Dst: Desired{IPv6: ipv6}.everything()}
		if r.Dst != nil {
			p, ok := prefix(r.Dst)
			if !ok {
				continue
			}
			route.Dst = p
		}
		if gw, ok := netip.AddrFromSlice(r.Gw); ok {
			if route.Gateway = gw; !ipv6 {
				route.Gateway = gw.Unmap()
			}
		}
		out = append(out, route)
	}
	return out, nil
}

// Result says what Reconcile did and what is not as desired, though the rest is.
type Result struct {
	Ops []Op
	// Marks is why packets are not marked by their ENI: pods of secondary ENIs then need a rule each. It is
	// ErrNoNFTables where this kernel can't.
	Marks error
	// NAT is why packets are not translated or answers don't leave by the primary ENI. It is ErrNoNFTables where this kernel
	// can't.
	NAT error
	// Kubelet is why the kubelet's own connections to strict pods do not stay on the node.
	Kubelet error
}

// Reconcile makes the host's routing as desired.
func (k *Kernel) Reconcile(ctx context.Context, d Desired) (r Result, err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	a, err := k.routing(d)
	if err != nil {
		return r, err
	}
	if a.Marks, r.Marks = k.nft.marksOf(ctx, d.shape()); r.Marks != nil {
		a.Marks.Missing = true
	}
	if errors.Is(r.Marks, errNoAnswer) {
		return Result{}, r.Marks
	}
	if a.Tables, err = k.nft.ruleTables(ctx); err != nil {
		if errors.Is(err, errNoAnswer) {
			return r, err
		}
		a.Tables.Missing = true
		if d.wantsTables() || !errors.Is(err, ErrNoNFTables) {
			r.NAT = err
		}
	}
	for _, op := range Plan(d, a) {
		if err := ctx.Err(); err != nil {
			return r, err
		}
		err := k.apply(ctx, op, d.IPv6)
		if errors.Is(err, errNoAnswer) {
			return r, fmt.Errorf("%s: %w", op, err)
		}
		if err != nil && op.Marks != nil {
			// The rules go on without: what is marked later is what is missing now.
			r.Marks = fmt.Errorf("%s: %w", op, err)
			continue
		}
		if err != nil && op.Table != nil {
			r.NAT = errors.Join(r.NAT, fmt.Errorf("%s: %w", op, err))
			continue
		}
		if err != nil {
			return r, fmt.Errorf("%s: %w", op, err)
		}
		r.Ops = append(r.Ops, op)
	}
	r.Kubelet = k.kubelet(ctx, d)
	return r, nil
}

// apply is idempotent: what is there already, or is gone already, is success.
func (k *Kernel) apply(ctx context.Context, op Op, ipv6 bool) error {
	switch {
	case op.Marks != nil:
		return k.nft.change(ctx, *op.Marks)
	case op.Table != nil:
		return k.nft.changeTable(ctx, *op.Table)
	case op.Rule != nil && op.Delete:
		// The kernel deletes the first rule that has what is asked for, whatever else it has: our protocol is asked for, too.
		r := toKernel(*op.Rule, ipv6)
		if op.Rule.Ours {
			r.Protocol = Protocol
		}
		return except(k.h.RuleDel(r), syscall.ENOENT)
	case op.Rule != nil:
		r := toKernel(*op.Rule, ipv6)
		r.Protocol = Protocol
		return except(k.h.RuleAdd(r), syscall.EEXIST)
	}
	r := &netlink.Route{Table: op.Route.Table, LinkIndex: op.Route.LinkIndex, Dst: ipNet(op.Route.Dst), Protocol: Protocol}
	if op.Route.Gateway.IsValid() {
		r.Gw = op.Route.Gateway.AsSlice()
		r.Flags = int(netlink.FLAG_ONLINK)
	} else {
		r.Scope = netlink.SCOPE_LINK
	}
	if op.Delete {
		return except(k.h.RouteDel(r), syscall.ESRCH)
	}
	return k.h.RouteReplace(r)
}

func toKernel(r Rule, ipv6 bool) *netlink.Rule {
	out := netlink.NewRule()
	out.Family, out.Priority, out.Table = netlinkFamily(ipv6), r.Priority, r.Table
	out.IifName, out.Mark, out.IPProto = r.Iif, r.Mark, r.IPProto
	if r.Mask != 0 {
		out.Mask = &r.Mask
	}
	if r.Goto != 0 {
		out.Goto = r.Goto
	}
	if r.From.IsValid() {
		out.Src = ipNet(r.From)
	}
	if r.To.IsValid() {
		out.Dst = ipNet(r.To)
	}
	return out
}

func except(err error, fine syscall.Errno) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}

// Pods returns the addresses of pods that are wired here, whoever remembers them: those of the pods' table, and those
// that the main table sends to a veth, as the upstream agent and others wire their pods.
func (k *Kernel) Pods() ([]netip.Addr, error) {
	var routes, inMain []Route
	for _, ipv6 := range []bool{false, true} {
		for table, into := range map[int]*[]Route{PodsTable: &routes, MainTable: &inMain} {
			list, err := k.routes(table, ipv6)
			if err != nil && ipv6 && (errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EOPNOTSUPP)) {
				continue // a kernel without IPv6
			}
			if err != nil {
				return nil, err
			}
			*into = append(*into, list...)
		}
	}
	links, err := rtnl.Dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	veths := map[int]bool{}
	for _, l := range links {
		veths[l.Attrs().Index] = l.Type() == "veth"
	}
	for _, r := range inMain {
		if !r.Gateway.IsValid() && veths[r.LinkIndex] {
			routes = append(routes, r)
		}
	}
	var out []netip.Addr
	for _, r := range routes {
		if r.Dst.IsSingleIP() {
			out = append(out, r.Dst.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
