package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Found is what the host has of pods' wiring, whoever made it.
type Found struct {
	Links []FoundLink // of ours
	// Names are those of all links.
	Names map[string]bool
	// Rules are those of priorities and kinds that pods' rules have.
	Rules []Rule
	// Routed says by which links a table leads to an address, but for the tables of strict pods, whose addresses no rule
	// is from.
	Routed map[netip.Addr][]string
}

// FoundLink is a link with our mark, or one that is in our group from its birth and whose maker was killed before it
// could mark it (Mark is empty then).
type FoundLink struct {
	Name  string
	Index int
	Mark  Mark
}

// Valid makes the test of what is not garbage from a list of sandboxes' interfaces.
func Valid(list []Owner) func(Owner) bool {
	valid := make(map[Owner]bool, len(list))
	for _, o := range list {
		valid[Owner{markedID(o.ContainerID), o.IfName}] = true
	}
	return func(o Owner) bool { return valid[o] }
}

// Garbage decides what goes: our links of sandboxes that are not valid, with their rules; rules of links that are not
// there any more; rules from addresses that no table of others than strict pods leads to by a link that stays. Routes,
// addresses and neighbours go with their links. No unmarked link of another program is named, and no rule that such a
// link, or the address of such a pod, needs.
//
// Nobody may be wiring pods while it is decided and done: the unmarked would be somebody's work.
func Garbage(f Found, valid func(Owner) bool) []Step {
	doomed := map[string]bool{}
	var veths, vlans []Step
	for _, l := range f.Links {
		if l.Mark.ContainerID != "" && valid(l.Mark.Owner) {
			continue
		}
		doomed[l.Name] = true
		if _, ok := VLANLinkID(l.Name); ok {
			vlans = append(vlans, DeleteLink{l.Name})
		} else {
			veths = append(veths, DeleteLink{l.Name})
		}
	}
	gone := func(link string) bool { return doomed[link] || !f.Names[link] }
	var steps []Step
	for _, r := range f.Rules {
		stale := false
		switch {
		case r.To.IsValid():
		case r.Iif != "" && (r.Priority == PriorityBranch || r.Priority == PriorityStandard):
			stale = r.Table > VLANTable(0) && r.Table <= VLANTable(MaxVLAN) && gone(r.Iif)
		case r.From.IsValid() && r.Priority == PriorityFromPod:
			stale = !slices.ContainsFunc(f.Routed[r.From], func(link string) bool { return !gone(link) })
		}
		if stale {
			steps = append(steps, DeleteRule{r})
		}
	}
	return append(append(steps, veths...), vlans...)
}

// Collect removes what Garbage names, while no ADD and no DEL is at work. It goes on after an error, and says what it
// removed.
func Collect(ctx context.Context, lock *Lock, valid func(Owner) bool) (removed []string, err error) {
	if err := lock.All(ctx); err != nil {
		return nil, err
	}
	k, err := openKernel(ctx, Owner{}, -1)
	if err != nil {
		return nil, err
	}
	defer k.close()
	f, err := find(ctx)
	if err != nil {
		return nil, err
	}
	for _, l := range f.Links {
		k.index[Host][l.Name] = l.Index
	}
	var errs []error
	for _, step := range Garbage(f, valid) {
		if err := k.do(step); err != nil {
			errs = append(errs, err)
			continue
		}
		removed = append(removed, step.String())
	}
	if err := k.flush(); err != nil {
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

// find reads the host. These are dumps: nobody waits for them but those who clean up.
func find(ctx context.Context) (Found, error) {
	f := Found{Names: map[string]bool{}, Routed: map[netip.Addr][]string{}}
	h, err := hostHandle(ctx)
	if err != nil {
		return f, err
	}
	defer h.Close()
	links, err := dumped(ctx, h.LinkList)
	if err != nil {
		return f, fmt.Errorf("list the links: %w", err)
	}
	names := map[int]string{}
	for _, l := range links {
		a := l.Attrs()
		names[a.Index], f.Names[a.Name] = a.Name, true
		mark, err := ParseMark(a.Alias)
		if err == nil || a.Alias == "" && a.Group == linkGroup && (l.Type() == "veth" || l.Type() == "vlan") {
			f.Links = append(f.Links, FoundLink{a.Name, a.Index, mark})
		}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := dumped(ctx, func() ([]netlink.Rule, error) { return h.RuleList(family) })
		if err != nil {
			return f, fmt.Errorf("list the rules: %w", err)
		}
		for _, r := range rules {
			rule, plain := ruleOf(r)
			rule.IPv6 = family == unix.AF_INET6
			if plain && slices.Contains([]int{PriorityBranch, PriorityStandard, PriorityFromPod}, r.Priority) {
				f.Rules = append(f.Rules, rule)
			}
		}
		routes, err := dumped(ctx, func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return f, fmt.Errorf("list the routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst == nil || r.Table == unix.RT_TABLE_LOCAL || ofStrictPods(r.Table) {
				continue
			}
			if p := prefixOf(r.Dst); p.IsSingleIP() {
				f.Routed[p.Addr()] = append(f.Routed[p.Addr()], names[r.LinkIndex])
			}
		}
	}
	return f, nil
}

// ofStrictPods says whether a table has single addresses of strict pods alone.
func ofStrictPods(table int) bool {
	return table == StrictPodsTable || table > VLANTable(0) && table <= VLANTable(MaxVLAN)
}

// hostHandle opens the library's socket, which waits no longer than the context.
func hostHandle(ctx context.Context) (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket on the host: %w", err)
	}
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(noDeadline)
	}
	if err := h.SetSocketTimeout(max(time.Until(end), time.Millisecond)); err != nil {
		h.Close()
		return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
	}
	return h, nil
}
