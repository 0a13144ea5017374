package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// kernel does single steps by netlink: one socket per namespace, no package-level calls, no dumps.
type kernel struct {
	host, pod *netlink.Handle // pod is nil in a teardown
	podNS     int
	owner     Owner
	index     map[Side]map[string]int // of the links that we made or looked at
	until     time.Time
}

// openKernel opens a socket in this process's namespace and, with podNS >= 0, one in the pod's.
func openKernel(ctx context.Context, owner Owner, podNS int) (*kernel, error) {
	k := &kernel{owner: owner, podNS: podNS, index: map[Side]map[string]int{Host: {}, Pod: {}}}
	var err error
	if k.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket on the host: %w", err)
	}
	if podNS >= 0 {
		if k.pod, err = netlink.NewHandleAt(netns.NsHandle(podNS), unix.NETLINK_ROUTE); err != nil {
			k.close()
			return nil, fmt.Errorf("open a netlink socket in the pod's network namespace: %w", err)
		}
	}
	return k, k.deadline(ctx)
}

// noDeadline is how long a request may take when its context has none.
const noDeadline = time.Minute

// deadline keeps a single netlink request from outliving the context.
func (k *kernel) deadline(ctx context.Context) error {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(noDeadline)
	}
	k.until = end
	left := max(time.Until(end), time.Millisecond)
	for _, h := range []*netlink.Handle{k.host, k.pod} {
		if h == nil {
			continue
		}
		if err := h.SetSocketTimeout(left); err != nil {
			return fmt.Errorf("set the netlink socket's timeout: %w", err)
		}
	}
	return nil
}

func (k *kernel) close() {
	for _, h := range []*netlink.Handle{k.host, k.pod} {
		if h != nil {
			h.Close()
		}
	}
}

func (k *kernel) handle(s Side) *netlink.Handle {
	if s == Pod {
		return k.pod
	}
	return k.host
}

// do makes one step true.
func (k *kernel) do(step Step) error {
	var err error
	switch s := step.(type) {
	case AddVLAN:
		err = k.addVLAN(s)
	case AddVeth:
		err = k.addVeth(s)
	case SetSysctl:
		err = writeSysctl(s)
	case AddAddress:
		err = k.addAddress(s)
	case AddNeighbour:
		err = k.handle(s.Side).NeighSet(&netlink.Neigh{
			LinkIndex: k.index[s.Side][s.Link], Family: family(s.Address.Is6()), State: netlink.NUD_PERMANENT,
			IP: s.Address.AsSlice(), HardwareAddr: s.MAC,
		})
	case AddRoute:
		err = k.addRoute(s)
	case AddRule:
		err = k.addRule(s.Rule)
	case AwaitAddress:
		err = k.awaitAddress(s)
	case DeleteLink:
		err = k.deleteLink(s.Name)
	case DeleteRule:
		err = k.deleteRules(s.Rule)
	default:
		err = fmt.Errorf("no such step: %T", step)
	}
	if err != nil {
		return &StepError{Step: step, Err: explain(step, err)}
	}
	return nil
}

// StepError says which step failed.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return e.Step.String() + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// explain adds what an errno means here, where that isn't plain.
func explain(step Step, err error) error {
	switch step.(type) {
	case AddVLAN:
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("%w: this kernel has no 802.1Q (module 8021q), branch ENIs can't be wired on this node", err)
		case errors.Is(err, unix.ENODEV):
			return fmt.Errorf("%w: the trunk's link is not there", err)
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("%w: the trunk has a link for this VLAN id under another name", err)
		case errors.Is(err, unix.ENETDOWN):
			return fmt.Errorf("%w: the trunk's link is down", err)
		}
	case AddVeth:
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%w: the sandbox has an interface of this name already", err)
		}
	}
	return err
}

func (k *kernel) addVLAN(s AddVLAN) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex, attrs.HardwareAddr = s.Name, s.TrunkIfindex, s.MAC
	link := &netlink.Vlan{LinkAttrs: attrs, VlanId: s.ID, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}
	if err := k.host.LinkAdd(link); err != nil {
		return err
	}
	if err := k.made(Host, s.Name); err != nil {
		return err
	}
	return k.finish(s.Name, s.Mark)
}

func (k *kernel) addVeth(s AddVeth) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = s.Host, s.HostMAC, s.MTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = s.Pod, s.PodMAC, uint32(s.MTU)
	veth.PeerNamespace = netlink.NsFd(k.podNS)
	if err := k.host.LinkAdd(veth); err != nil {
		return err
	}
	if err := k.made(Host, s.Host); err != nil {
		return err
	}
	if err := k.made(Pod, s.Pod); err != nil {
		return err
	}
	if err := k.finish(s.Host, s.Mark); err != nil {
		return err
	}
	return k.pod.LinkSetUp(k.link(Pod, s.Pod))
}

// finish gives a new host link what can't be said when it is made.
func (k *kernel) finish(name string, mark Mark) error {
	if err := k.host.LinkSetAlias(k.link(Host, name), mark.String()); err != nil {
		return err
	}
	if err := writeSysctl(SetSysctl{Link: name, Key: "rp_filter", Value: looseRPFilter}); err != nil {
		return err
	}
	return k.host.LinkSetUp(k.link(Host, name))
}

// made remembers the index of a link that was just created.
func (k *kernel) made(side Side, name string) error {
	link, err := k.handle(side).LinkByName(name)
	if err != nil {
		return fmt.Errorf("look up the new link %s (%s): %w", name, side, err)
	}
	k.index[side][name] = link.Attrs().Index
	return nil
}

func (k *kernel) link(side Side, name string) netlink.Link {
	return &netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: k.index[side][name]}}
}

func (k *kernel) addAddress(s AddAddress) error {
	a := &netlink.Addr{IPNet: ipNet(s.Address)}
	if s.Address.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	return k.handle(s.Side).AddrReplace(k.link(s.Side, s.Link), a)
}

// awaitAddress waits for the kernel's own route to the address, which it announces with the address.
func (k *kernel) awaitAddress(s AwaitAddress) error {
	events, err := nl.SubscribeAt(netns.NsHandle(k.podNS), netns.None(), unix.NETLINK_ROUTE, unix.RTNLGRP_IPV6_IFADDR)
	if err != nil {
		return err
	}
	defer events.Close()
	wait := unix.NsecToTimeval(max(time.Until(k.until), time.Millisecond).Nanoseconds())
	if err := events.SetReceiveTimeout(&wait); err != nil {
		return err
	}
	for {
		routes, err := k.pod.RouteGetWithOptions(s.Address.AsSlice(), &netlink.RouteGetOptions{FIBMatch: true})
		if err == nil && len(routes) == 1 && routes[0].Type == unix.RTN_LOCAL {
			return nil
		}
		if err != nil && !isUnreachable(err) {
			return err
		}
		if _, _, err := events.Receive(); err != nil {
			return err
		}
	}
}

func isUnreachable(err error) bool {
	return errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) || errors.Is(err, unix.ESRCH)
}

func (k *kernel) addRoute(s AddRoute) error {
	r := &netlink.Route{LinkIndex: k.index[s.Side][s.Link], Table: s.Table, Dst: ipNet(s.Dst), Scope: netlink.SCOPE_LINK}
	if s.Gateway.IsValid() {
		r.Gw, r.Scope = s.Gateway.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	return k.handle(s.Side).RouteReplace(r)
}

// addRule takes the place of whatever rule has the same selector: an older sandbox's, for another table, would win.
func (k *kernel) addRule(r Rule) error {
	stale := r
	stale.Table = 0
	if err := k.deleteRules(stale); err != nil {
		return fmt.Errorf("%s: %w", DeleteRule{stale}, err)
	}
	// The library adds with NLM_F_EXCL; an equal rule is what we want.
	if err := k.host.RuleAdd(r.netlink()); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	return nil
}

// maxStaleRules bounds the loop should the kernel say "deleted" for ever.
const maxStaleRules = 64

// deleteRules deletes every rule with the selector, of any table when r names none: the kernel takes one at a time.
func (k *kernel) deleteRules(r Rule) error {
	for range maxStaleRules {
		err := k.host.RuleDel(r.netlink())
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("there are still more after %d were deleted", maxStaleRules)
}

func family(ipv6 bool) int {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func (r Rule) netlink() *netlink.Rule {
	n := netlink.NewRule()
	n.Family, n.Priority, n.Table, n.IifName = family(r.IPv6), r.Priority, r.Table, r.Iif
	if r.From.IsValid() {
		n.Src = ipNet(netip.PrefixFrom(r.From, r.From.BitLen()))
	}
	return n
}

func (k *kernel) deleteLink(name string) error {
	index, ok := k.index[Host][name]
	if !ok {
		// We have not seen this link: a step that failed in its middle is being undone. Somebody else's stays.
		o, err := k.observe(name, k.owner)
		if err != nil || o.holder != us && o.holder != leftover {
			return err
		}
		index = o.index
	}
	// By index: what has the name by now may be another's.
	err := k.host.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	delete(k.index[Host], name)
	return nil
}

func isLinkNotFound(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound)
}

func writeSysctl(s SetSysctl) error {
	family := "ipv4"
	if s.IPv6 {
		family = "ipv6"
	}
	f, err := os.OpenFile("/proc/sys/net/"+family+"/conf/"+s.Link+"/"+s.Key, os.O_WRONLY, 0)
	if s.IPv6 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(s.Value)
	return errors.Join(err, f.Close())
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
