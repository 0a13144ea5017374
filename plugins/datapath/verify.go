package datapath

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Difference is what Verify has found that is not as the plan has it.
type Difference struct {
	Object string // what it is about, as "route default via 169.254.1.1 dev eth0 table 254 (pod)"
	Is     string // "missing", or how it is
}

func (d *Difference) Error() string { return d.Object + ": " + d.Is }

const missing = "missing"

// Verify compares the kernel with the plan of a sandbox that is wired. The error is the first difference, a *Difference,
// or says what the kernel could not be asked. Nothing is changed.
func Verify(ctx context.Context, p Plan, podNS int) error {
	v, err := openVerifier(ctx, podNS)
	if err != nil {
		return err
	}
	defer v.close()
	return v.all(p.Steps)
}

// all returns the first difference.
func (v *verifier) all(steps []Step) error {
	for _, step := range steps {
		if v.ctx.Err() != nil {
			return fmt.Errorf("verify %s: %w", step, context.Cause(v.ctx))
		}
		is, err := v.verify(step)
		if err != nil {
			return fmt.Errorf("verify %s: %w", object(step), err)
		}
		if is != "" {
			return &Difference{object(step), is}
		}
	}
	return nil
}

// openVerifier opens a socket on the host and, with podNS >= 0, one in the pod's namespace.
func openVerifier(ctx context.Context, podNS int) (v *verifier, err error) {
	v = &verifier{ctx: ctx}
	if v.handles[Host], err = hostHandle(ctx); err != nil {
		return nil, err
	}
	if podNS < 0 {
		return v, nil
	}
	if v.handles[Pod], err = netlink.NewHandleAt(netns.NsHandle(podNS), unix.NETLINK_ROUTE); err != nil {
		v.close()
		return nil, fmt.Errorf("open a netlink socket in the pod's network namespace: %w", err)
	}
	if end, ok := ctx.Deadline(); ok {
		if err := v.handles[Pod].SetSocketTimeout(max(time.Until(end), time.Millisecond)); err != nil {
			v.close()
			return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
		}
	}
	return v, nil
}

func object(step Step) string {
	switch s := step.(type) {
	case interface{ object() string }:
		return s.object()
	case DeleteRule:
		return s.Rule.String()
	}
	return step.String()
}

type verifier struct {
	ctx     context.Context
	handles [2]*netlink.Handle // by Side
}

func (v *verifier) close() {
	for _, h := range v.handles {
		if h != nil {
			h.Close()
		}
	}
}

// verify says how what a step makes is, where it isn't as the step makes it.
func (v *verifier) verify(step Step) (is string, err error) {
	switch s := step.(type) {
	case AddVLAN:
		return v.vlan(s)
	case AddVeth:
		return v.veth(s)
	case SetSysctl:
		is, err := v.setting(s)
		if s.IPv6 && errors.Is(err, fs.ErrNotExist) {
			return "", nil
		}
		return is, err
	case AddAddress:
		return v.address(s)
	case AddNeighbour:
		return v.neighbour(s)
	case AddRoute:
		return v.route(s)
	case AddRule:
		return v.rule(s.Rule)
	case DeleteRule:
		if is, err := v.rule(s.Rule); err != nil || is != "" {
			return "", err
		}
		return "is there: a sandbox of before has left it, and it sends this one's packets elsewhere", nil
	case DeleteRoute:
		list, err := v.routesTo(Host, s.Table, single(s.Address))
		if err != nil || len(list) == 0 {
			return "", err
		}
		return "is there: a sandbox of before has left it, and it leads what is for this one elsewhere", nil
	case AwaitAddress:
		return "", nil // the address itself was looked at
	case DisableIPv6:
		return "", nil // today's configuration says nothing of the one that the pod was wired with
	}
	return "", fmt.Errorf("no such step: %T", step)
}

// dumped repeats a dump that the kernel says was interrupted by a change, until the context ends.
func dumped[T any](ctx context.Context, dump func() ([]T, error)) ([]T, error) {
	for {
		list, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || ctx.Err() != nil {
			return list, err
		}
	}
}

// link is nil where there is none of the name.
func (v *verifier) link(side Side, name string) (netlink.Link, error) {
	l, err := v.handles[side].LinkByName(name)
	var none netlink.LinkNotFoundError
	if errors.As(err, &none) {
		return nil, nil
	}
	return l, err
}

func (v *verifier) vlan(s AddVLAN) (string, error) {
	l, err := v.link(Host, s.Name)
	if l == nil || err != nil {
		return missing, err
	}
	vlan, ok := l.(*netlink.Vlan)
	switch {
	case !ok:
		return "is a " + l.Type(), nil
	case vlan.VlanId != s.ID:
		return fmt.Sprintf("has id %d", vlan.VlanId), nil
	case vlan.ParentIndex != s.TrunkIfindex:
		return fmt.Sprintf("is on the link with ifindex %d", vlan.ParentIndex), nil
	}
	return v.made(vlan.Attrs(), s.MAC, 0, s.Mark)
}

func (v *verifier) veth(s AddVeth) (string, error) {
	host, err := v.link(Host, s.Host)
	if host == nil || err != nil {
		return missing, err
	}
	pod, err := v.link(Pod, s.Pod)
	if pod == nil || err != nil {
		return "the pod's end is " + missing, err
	}
	switch {
	case host.Type() != "veth":
		return "is a " + host.Type(), nil
	case host.Attrs().ParentIndex != pod.Attrs().Index || pod.Type() != "veth":
		return fmt.Sprintf("its peer is not %s of this pod", s.Pod), nil
	}
	if is := attributesOf(pod.Attrs(), s.PodMAC, s.MTU); is != "" {
		return "the pod's end " + is, nil
	}
	if is, err := v.made(host.Attrs(), s.HostMAC, s.MTU, s.Mark); is != "" || err != nil {
		return is, err
	}
	is, err := v.setting(SetSysctl{IPv6: true, Link: s.Host, Key: "addr_gen_mode", Value: fmt.Sprint(in6AddrGenModeNone)})
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil // no IPv6
	}
	if is != "" {
		is = "its addr_gen_mode " + is
	}
	return is, err
}

func attributesOf(a *netlink.LinkAttrs, mac net.HardwareAddr, mtu int) string {
	switch {
	case a.Flags&net.FlagUp == 0:
		return "is down"
	case !bytes.Equal(a.HardwareAddr, mac):
		return "has the address " + a.HardwareAddr.String()
	case mtu != 0 && a.MTU != mtu:
		return fmt.Sprintf("has mtu %d", a.MTU)
	}
	return ""
}

// made looks at what every host link of ours has.
func (v *verifier) made(a *netlink.LinkAttrs, mac net.HardwareAddr, mtu int, mark Mark) (string, error) {
	if is := attributesOf(a, mac, mtu); is != "" {
		return is, nil
	}
	if a.Alias != mark.String() {
		return fmt.Sprintf("is marked %q, not %q", a.Alias, mark), nil
	}
	is, err := v.setting(SetSysctl{Link: a.Name, Key: "rp_filter", Value: fmt.Sprint(looseRPFilter)})
	if is != "" {
		is = "its rp_filter " + is
	}
	return is, err
}

func (v *verifier) setting(s SetSysctl) (string, error) {
	value, err := os.ReadFile(s.path())
	if err != nil {
		return "", err
	}
	if now := strings.TrimSpace(string(value)); now != s.Value {
		return "is " + now, nil
	}
	return "", nil
}

func (v *verifier) address(s AddAddress) (string, error) {
	l, err := v.link(s.Side, s.Link)
	if l == nil || err != nil {
		return missing, err
	}
	list, err := dumped(v.ctx, func() ([]netlink.Addr, error) {
		return v.handles[s.Side].AddrList(l, int(family(s.Address.Addr().Is6())))
	})
	if err != nil {
		return "", err
	}
	for _, a := range list {
		if prefixOf(a.IPNet) != s.Address {
			continue
		}
		if a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 {
			return "is not in use: the kernel looks for duplicates of it, or has found one", nil
		}
		return "", nil
	}
	return missing, nil
}

func (v *verifier) neighbour(s AddNeighbour) (string, error) {
	l, err := v.link(s.Side, s.Link)
	if l == nil || err != nil {
		return missing, err
	}
	list, err := dumped(v.ctx, func() ([]netlink.Neigh, error) {
		return v.handles[s.Side].NeighList(l.Attrs().Index, int(family(s.Address.Is6())))
	})
	if err != nil {
		return "", err
	}
	for _, n := range list {
		if a, _ := netip.AddrFromSlice(n.IP); a.Unmap() != s.Address {
			continue
		}
		switch {
		case !bytes.Equal(n.HardwareAddr, s.MAC):
			return "is at " + n.HardwareAddr.String(), nil
		case n.State&netlink.NUD_PERMANENT == 0:
			return "is not permanent", nil
		}
		return "", nil
	}
	return missing, nil
}

func (v *verifier) route(s AddRoute) (string, error) {
	l, err := v.link(s.Side, s.Link)
	if l == nil || err != nil {
		return missing, err
	}
	list, err := v.routesTo(s.Side, s.Table, s.Dst)
	if err != nil {
		return "", err
	}
	is := missing
	for _, r := range list {
		gateway, _ := netip.AddrFromSlice(r.Gw)
		switch gateway = gateway.Unmap(); {
		case r.LinkIndex != l.Attrs().Index:
			is = fmt.Sprintf("is by the link with ifindex %d", r.LinkIndex)
		case gateway != s.Gateway && gateway.IsValid():
			is = "is via " + gateway.String()
		case gateway != s.Gateway:
			is = "is without a gateway"
		default:
			return "", nil
		}
	}
	return is, nil
}

// routesTo are a table's routes to exactly this destination.
func (v *verifier) routesTo(side Side, table int, to netip.Prefix) (out []netlink.Route, err error) {
	list, err := dumped(v.ctx, func() ([]netlink.Route, error) {
		return v.handles[side].RouteListFiltered(int(family(to.Addr().Is6())), &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	for _, r := range list {
		dst := everywhere(to.Addr())
		if r.Dst != nil {
			dst = prefixOf(r.Dst)
		}
		if dst == to && r.Type == unix.RTN_UNICAST {
			out = append(out, r)
		}
	}
	return out, err
}

func (v *verifier) rule(want Rule) (string, error) {
	list, err := dumped(v.ctx, func() ([]netlink.Rule, error) { return v.handles[want.Side].RuleList(int(family(want.IPv6))) })
	if err != nil {
		return "", err
	}
	for _, r := range list {
		if is, plain := ruleOf(r); plain && is.matches(want) {
			return "", nil
		}
	}
	return missing, nil
}

// ruleOf is a rule of the kernel in our terms; not plain when it selects by more than they can say.
func ruleOf(r netlink.Rule) (rule Rule, plain bool) {
	rule = Rule{Priority: r.Priority, Iif: r.IifName, Table: r.Table, IPv6: r.Family == unix.AF_INET6}
	plain = r.Mark == 0 && r.OifName == "" && !r.Invert
	for _, side := range []struct {
		net *net.IPNet
		to  *netip.Addr
	}{{r.Src, &rule.From}, {r.Dst, &rule.To}} {
		if side.net == nil {
			continue
		}
		p := prefixOf(side.net)
		*side.to, plain = p.Addr(), plain && p.IsSingleIP()
	}
	return rule, plain
}

// matches says whether a rule is the wanted one; a wanted one with Table 0 may have any.
func (r Rule) matches(want Rule) bool {
	return r.Priority == want.Priority && r.Iif == want.Iif && r.From == want.From && r.To == want.To && (want.Table == 0 || r.Table == want.Table)
}

func prefixOf(n *net.IPNet) netip.Prefix {
	a, _ := netip.AddrFromSlice(n.IP)
	bits, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), bits)
}
