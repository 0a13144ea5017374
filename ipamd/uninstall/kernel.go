package uninstall

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// What the executables make per pod. Rooms of one row don't know each other, so these are said here again; a test holds
// them together.
const (
	markPrefix       = "branchline:"
	egressMarkPrefix = "branchline-egress:"
	vlanPrefix       = "vlan.eth."
	priorityStrict   = 10
	priorityFromPod  = 1536
	priorityStandard = 1537
	tableStrictPods  = 510
	tableLocalPods   = 511
	linkGroup        = 0xb1a7 // IFLA_GROUP of the executable's links from their birth on
	dumpTries        = 10
	netlinkTimeout   = 5 * time.Second
)

// podVeth are the names of pods' host veths.
var podVeth = regexp.MustCompile(`^[A-Za-z]{1,4}[0-9a-f]{11}$`)

type kernel struct{ h *netlink.Handle }

func openKernel() (*kernel, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open a netlink socket: %w", err)
	}
	if err := h.SetSocketTimeout(netlinkTimeout); err != nil {
		h.Close()
		return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
	}
	return &kernel{h}, nil
}

func (k *kernel) close() { k.h.Close() }

func dump[T any](f func() ([]T, error)) (out []T, err error) {
	for range dumpTries {
		if out, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

// link is one link of ours.
type link struct {
	index   int
	name    string
	sandbox string // <container id>/<interface>, empty for a leftover without a mark
	note    string // the rest of the mark
	pod     bool   // a pod's way in: the pod is wired as long as it is there
}

// ours reads what a link says of itself. A link of a name that pods' links have, without any mark but in our group, or
// down, is what an executable left that was killed before it could mark it; other agents' are up.
func ours(name, kind, alias string, up bool, group uint32) (link, bool) {
	l := link{name: name}
	mark, ok := strings.CutPrefix(alias, markPrefix)
	if egress, isEgress := strings.CutPrefix(alias, egressMarkPrefix); isEgress {
		l.sandbox = egress
		return l, true
	}
	if ok {
		l.sandbox, l.note, _ = strings.Cut(mark, " ")
		l.pod = kind == "veth"
		return l, true
	}
	leftover := alias == "" && (!up || group == linkGroup) && (kind == "veth" && podVeth.MatchString(name) || kind == "vlan" && strings.HasPrefix(name, vlanPrefix))
	return l, leftover
}

func (k *kernel) links() ([]link, error) {
	list, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	var out []link
	for _, l := range list {
		a := l.Attrs()
		if o, ok := ours(a.Name, l.Type(), a.Alias, a.Flags&net.FlagUp != 0, a.Group); ok {
			o.index = a.Index
			out = append(out, o)
		}
	}
	return out, nil
}

// podsOf says which pods are wired, with their names where they are known.
func podsOf(links []link, names map[string]string) (pods []string) {
	for _, l := range links {
		if !l.pod {
			continue
		}
		name := names[l.sandbox]
		if name == "" {
			name = "a pod whose name is not known"
		}
		pods = append(pods, fmt.Sprintf("%s: sandbox %s, link %s %s", name, l.sandbox, l.name, l.note))
	}
	slices.Sort(pods)
	return pods
}

func (k *kernel) removeLinks(links []link) (removed []string, err error) {
	var errs []error
	for _, l := range links {
		err := k.h.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: l.name, Index: l.index}})
		if err != nil && !errors.Is(err, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("delete link %s: %w", l.name, err))
			continue
		}
		removed = append(removed, "link "+l.name)
	}
	return removed, errors.Join(errs...)
}

// otherBranchPods says whether VLAN links of branch pods are left, which then are another agent's.
func (k *kernel) otherBranchPods() (bool, error) {
	list, err := dump(k.h.LinkList)
	if err != nil {
		return false, fmt.Errorf("list the links: %w", err)
	}
	return slices.ContainsFunc(list, func(l netlink.Link) bool { return strings.HasPrefix(l.Attrs().Name, vlanPrefix) }), nil
}

// removePodRouting removes the rules of pods that are gone, and what is left in the tables that are ours alone. Rules of
// addresses that are wired by somebody else stay.
func (k *kernel) removePodRouting(wired []netip.Addr) (removed []string, err error) {
	list, err := dump(k.h.LinkList)
	if err != nil {
		return nil, fmt.Errorf("list the links: %w", err)
	}
	there := map[string]bool{}
	for _, l := range list {
		there[l.Attrs().Name] = true
	}
	var errs []error
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := dump(func() ([]netlink.Rule, error) { return k.h.RuleList(family) })
		if err != nil {
			errs = append(errs, fmt.Errorf("list the routing rules: %w", err))
			continue
		}
		for _, r := range rules {
			if !ofGonePod(r, there, wired) {
				continue
			}
			if err := k.h.RuleDel(&r); err != nil && !errors.Is(err, syscall.ENOENT) {
				errs = append(errs, fmt.Errorf("delete rule %s: %w", r, err))
				continue
			}
			removed = append(removed, "rule "+r.String())
		}
		for _, table := range []int{tableStrictPods, tableLocalPods} {
			gone, err := k.emptyTable(family, table)
			removed, errs = append(removed, gone...), append(errs, err)
		}
	}
	return removed, errors.Join(errs...)
}

func ofGonePod(r netlink.Rule, there map[string]bool, wired []netip.Addr) bool {
	switch r.Priority {
	case priorityStrict, priorityStandard:
		return r.IifName != "" && !there[r.IifName] && (strings.HasPrefix(r.IifName, vlanPrefix) || podVeth.MatchString(r.IifName))
	case priorityFromPod:
		if r.Src == nil || r.IifName != "" {
			return false
		}
		a, ok := netip.AddrFromSlice(r.Src.IP)
		ones, bits := r.Src.Mask.Size()
		return ok && ones == bits && !slices.Contains(wired, a.Unmap())
	}
	return false
}

func (k *kernel) emptyTable(family, table int) (removed []string, err error) {
	routes, err := dump(func() ([]netlink.Route, error) {
		return k.h.RouteListFiltered(family, &netlink.Route{Table: table}, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes of table %d: %w", table, err)
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
