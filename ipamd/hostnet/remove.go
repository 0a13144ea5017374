package hostnet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/ipamd/nfnl"
	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// tablePrefix starts the names of all nftables tables of ours.
const tablePrefix = "branchline"

// Remove takes everything of the whole node away that carries our mark, whichever version made it: rules and routes of
// both families, nftables tables. The kernel's local rule goes back to its place first, unless branch pods of somebody
// else's are left that need it where it is. It returns what was removed, and goes on after what fails.
func (k *Kernel) Remove(ctx context.Context, branchPodsLeft bool) (removed []string, err error) {
	var errs []error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		if ctx.Err() != nil {
			return removed, errors.Join(append(errs, context.Cause(ctx))...)
		}
		gone, err := k.removeRules(family, branchPodsLeft)
		removed, errs = append(removed, gone...), append(errs, err)
		gone, err = k.removeRoutes(family)
		removed, errs = append(removed, gone...), append(errs, err)
	}
	gone, err := removeTables()
	return append(removed, gone...), errors.Join(append(errs, err)...)
}

func (k *Kernel) removeRules(family int, branchPodsLeft bool) (removed []string, err error) {
	rules, err := rtnl.Dump(func() ([]netlink.Rule, error) { return k.h.RuleList(family) })
	if err != nil {
		return nil, fmt.Errorf("list the routing rules: %w", err)
	}
	var errs []error
	local := func(r netlink.Rule, priority int) bool {
		return r.Table == LocalTable && max(0, r.Priority) == priority && r.IifName == "" && r.Src == nil && r.Dst == nil && r.Mark == 0
	}
	if !slices.ContainsFunc(rules, func(r netlink.Rule) bool { return local(r, LocalPriority) }) && !branchPodsLeft {
		r := netlink.NewRule()
		r.Family, r.Priority, r.Table = family, LocalPriority, LocalTable
		if err := k.h.RuleAdd(r); err != nil && !errors.Is(err, syscall.EEXIST) {
			return nil, fmt.Errorf("put the local rule back to priority %d: %w", LocalPriority, err)
		}
	}
	for _, r := range rules {
		moved := local(r, LocalPriorityStrict)
		if r.Protocol != Protocol && !moved || local(r, LocalPriority) || moved && branchPodsLeft {
			continue
		}
		if err := k.h.RuleDel(&r); err != nil && !errors.Is(err, syscall.ENOENT) {
			errs = append(errs, fmt.Errorf("delete rule %s: %w", r, err))
			continue
		}
		removed = append(removed, "rule "+r.String())
	}
	return removed, errors.Join(errs...)
}

func (k *Kernel) removeRoutes(family int) (removed []string, err error) {
	routes, err := rtnl.Dump(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(family, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list our routes: %w", err)
	}
	var errs []error
	for _, r := range routes {
		if err := k.h.RouteDel(&r); err != nil && !errors.Is(err, syscall.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route %s: %w", r, err))
			continue
		}
		removed = append(removed, "route "+r.String())
	}
	return removed, errors.Join(errs...)
}

// removeTables deletes our nftables tables. A kernel without nf_tables has none.
func removeTables() (removed []string, err error) {
	conn, tables, err := nfnl.Tables()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, conn.CloseLasting()) }()
	for _, t := range tables {
		if t.Name != tablePrefix && !strings.HasPrefix(t.Name, tablePrefix+"-") {
			continue
		}
		conn.DelTable(t)
		if err := conn.Flush(); err != nil && !errors.Is(err, syscall.ENOENT) {
			return removed, fmt.Errorf("delete nftables table %s: %w", t.Name, err)
		}
		removed = append(removed, "nftables table "+t.Name)
	}
	return removed, nil
}
