package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// maxENITable bounds the tables that belong to ENIs: device numbers 1 to 15 of network card 0.
const maxENITable = 16

// Kernel reads and changes the routing of the network namespace that it was made in.
type Kernel struct{ h *netlink.Handle }

// NewKernel opens a netlink socket in the current network namespace.
func NewKernel() (*Kernel, error) {
	h, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	return &Kernel{h}, nil
}

// Close closes the socket.
func (k *Kernel) Close() { k.h.Close() }

// Actual reads what is there.
func (k *Kernel) Actual() (a Actual, err error) {
	rules, err := rtnl.Dump(func() ([]netlink.Rule, error) { return k.h.RuleList(netlink.FAMILY_V4) })
	if err != nil {
		return a, fmt.Errorf("list the routing rules: %w", err)
	}
	for _, r := range rules {
		if rule, ok := fromKernel(r); ok {
			a.Rules = append(a.Rules, rule)
		}
	}
	for table := 2; table <= maxENITable; table++ {
		routes, err := k.routes(table)
		if err != nil {
			return a, err
		}
		a.Routes = append(a.Routes, routes...)
	}
	return a, nil
}

// fromKernel leaves out the rules that select by what this package never uses: they are somebody else's.
func fromKernel(r netlink.Rule) (Rule, bool) {
	if r.IifName != "" || r.OifName != "" || r.Dst != nil || r.Mark != 0 || r.Invert || r.Goto > 0 || r.IPProto != 0 || r.Sport != nil || r.Dport != nil {
		return Rule{}, false
	}
	out := Rule{Priority: max(0, r.Priority), Table: r.Table, Ours: r.Protocol == Protocol}
	if r.Src != nil {
		p, ok := prefix(r.Src)
		if !ok {
			return Rule{}, false
		}
		out.From = p
	}
	return out, true
}

func prefix(n *net.IPNet) (netip.Prefix, bool) {
	addr, ok := netip.AddrFromSlice(n.IP.To4())
	ones, bits := n.Mask.Size()
	return netip.PrefixFrom(addr, ones), ok && bits == 32
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func (k *Kernel) routes(table int) ([]Route, error) {
	list, err := rtnl.Dump(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(netlink.FAMILY_V4, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes of table %d: %w", table, err)
	}
	var out []Route
	for _, r := range list {
		route := Route{Table: table, LinkIndex: r.LinkIndex, Ours: r.Protocol == Protocol, Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
		if r.Dst != nil {
			p, ok := prefix(r.Dst)
			if !ok {
				continue
			}
			route.Dst = p
		}
		if gw, ok := netip.AddrFromSlice(r.Gw.To4()); ok {
			route.Gateway = gw
		}
		out = append(out, route)
	}
	return out, nil
}

// Reconcile makes the host's routing as desired and returns what was changed.
func (k *Kernel) Reconcile(ctx context.Context, d Desired) ([]Op, error) {
	a, err := k.Actual()
	if err != nil {
		return nil, err
	}
	ops := Plan(d, a)
	for i, op := range ops {
		if err := ctx.Err(); err != nil {
			return ops[:i], err
		}
		if err := k.apply(op); err != nil {
			return ops[:i], fmt.Errorf("%s: %w", op, err)
		}
	}
	return ops, nil
}

// apply is idempotent: what is there already, or is gone already, is success.
func (k *Kernel) apply(op Op) error {
	if op.Rule != nil {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = netlink.FAMILY_V4, op.Rule.Priority, op.Rule.Table
		if op.Rule.From.IsValid() {
			r.Src = ipNet(op.Rule.From)
		}
		if op.Delete {
			return except(k.h.RuleDel(r), syscall.ENOENT)
		}
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

func except(err error, fine syscall.Errno) error {
	if errors.Is(err, fine) {
		return nil
	}
	return err
}

// Pods returns the addresses of pods that are wired here, whoever remembers them: those of the pods' table, and those
// that the main table sends to a veth, as the upstream agent and others wire their pods.
func (k *Kernel) Pods() ([]netip.Addr, error) {
	routes, err := k.routes(PodsTable)
	if err != nil {
		return nil, err
	}
	inMain, err := k.routes(MainTable)
	if err != nil {
		return nil, err
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
		if r.Dst.Bits() == 32 {
			out = append(out, r.Dst.Addr())
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out), nil
}
