package egress

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// errConflict says that a link has the name that we need and isn't ours to replace.
var errConflict = errors.New("name is taken by a link that is not ours")

// kernel works by netlink on the host and, where a pod's network namespace is open, in it.
type kernel struct {
	host, pod *netlink.Handle
	podNS     netns.NsHandle
}

func openKernel(ctx context.Context, pod *os.File) (*kernel, error) {
	k := &kernel{podNS: netns.None()}
	var err error
	if k.host, err = netlink.NewHandle(unix.NETLINK_ROUTE); err != nil {
		return nil, fmt.Errorf("open a netlink socket on the host: %w", err)
	}
	if pod != nil {
		k.podNS = netns.NsHandle(pod.Fd())
		if k.pod, err = netlink.NewHandleAt(k.podNS, unix.NETLINK_ROUTE); err != nil {
			k.close()
			return nil, fmt.Errorf("open a netlink socket in the pod's network namespace: %w", err)
		}
	}
	if end, ok := ctx.Deadline(); ok {
		left := max(time.Until(end), time.Millisecond)
		for _, h := range []*netlink.Handle{k.host, k.pod} {
			if h == nil {
				continue
			}
			if err := h.SetSocketTimeout(left); err != nil {
				k.close()
				return nil, fmt.Errorf("set the netlink socket's timeout: %w", err)
			}
		}
	}
	return k, nil
}

func (k *kernel) close() {
	for _, h := range []*netlink.Handle{k.host, k.pod} {
		if h != nil {
			h.Close()
		}
	}
}

// addresses are those that the pod has in the family, but for our own link's.
func (k *kernel) addresses(f Family) ([]netip.Addr, error) {
	list, err := dump(func() ([]netlink.Addr, error) { return k.pod.AddrList(nil, f.number()) })
	if err != nil {
		return nil, fmt.Errorf("list the pod's addresses: %w", err)
	}
	own := 0
	if l, err := k.pod.LinkByName(f.PodLink()); err == nil {
		own = l.Attrs().Index
	}
	var out []netip.Addr
	for _, a := range list {
		if a.LinkIndex != own {
			out = append(out, addrOf(a.IP))
		}
	}
	return out, nil
}

// dumpTries bounds how often a dump is repeated that a change has interrupted.
const dumpTries = 10

func dump[T any](f func() ([]T, error)) (out []T, err error) {
	for range dumpTries {
		if out, err = f(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return out, err
}

func (f Family) number() int {
	if f == IPv4 {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// mine looks for a host link of ours; 0 when there is none. One without a mark, down, is what an executable left that
// was killed before it could mark it: the name is this sandbox's alone.
func (k *kernel) mine(name, mark string) (index int, err error) {
	l, err := k.host.LinkByName(name)
	var notFound netlink.LinkNotFoundError
	if errors.As(err, &notFound) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look at link %s: %w", name, err)
	}
	a := l.Attrs()
	if a.Alias == mark || a.Alias == "" && a.Flags&net.FlagUp == 0 && l.Type() == "veth" {
		return a.Index, nil
	}
	return 0, fmt.Errorf("%w: %s %s (ifalias %q): find out who made it, and delete it if nothing uses it", errConflict, l.Type(), name, a.Alias)
}

// unwire takes the host's side away and with it everything that the pod was given.
func (k *kernel) unwire(name, mark string) error {
	index, err := k.mine(name, mark)
	if err != nil || index == 0 {
		return err
	}
	return k.deleteLink(name, index)
}

func (k *kernel) deleteLink(name string, index int) error {
	err := k.host.LinkDel(&netlink.GenericLink{LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}})
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("delete link %s: %w", name, err)
	}
	return nil
}

// wire makes everything of w. What an earlier ADD of the same sandbox made is replaced. The caller undoes by unwire.
func (k *kernel) wire(ctx context.Context, w Wiring) error {
	if err := k.unwire(w.Host, w.Owner.Mark()); err != nil {
		return err
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU = w.Host, w.HostMAC, w.MTU
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU, veth.PeerNamespace = w.Pod, w.PodMAC, uint32(w.MTU), netlink.NsFd(k.podNS)
	if err := k.host.LinkAdd(veth); err != nil {
		return fmt.Errorf("make veth %s with %s in the pod: %w", w.Host, w.Pod, err)
	}
	host, err := k.host.LinkByName(w.Host)
	if err != nil {
		return fmt.Errorf("look up the new link %s: %w", w.Host, err)
	}
	pod, err := k.pod.LinkByName(w.Pod)
	if err != nil {
		return fmt.Errorf("look up the new link %s in the pod: %w", w.Pod, err)
	}
	single := netip.PrefixFrom(w.Address, w.Address.BitLen())
	gateway := netip.PrefixFrom(w.Gateway, w.Gateway.BitLen())
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"mark " + w.Host, func() error { return k.host.LinkSetAlias(host, w.Owner.Mark()) }},
		{"set the sysctls of " + w.Host, func() error { return w.sysctls(w.Host) }},
		{"set the sysctls of " + w.Pod, func() error { return k.inPod(func() error { return w.sysctls(w.Pod) }) }},
		// The host's end comes second: it sends at once then, and the pod's, for which nobody waits yet, when the kernel has looked
		// at its carrier.
		{"bring up " + w.Pod, func() error { return k.pod.LinkSetUp(pod) }},
		{"bring up " + w.Host, func() error { return k.host.LinkSetUp(host) }},
		{"add address " + single.String(), func() error { return k.pod.AddrReplace(pod, w.address()) }},
		{"add the gateway's neighbour entry", func() error { return k.pod.NeighSet(neighbour(w.Family, pod, w.Gateway, w.HostMAC)) }},
		{"add the route to the gateway", func() error { return k.pod.RouteReplace(route(pod, gateway, netip.Addr{})) }},
		{"add the default route", func() error { return k.pod.RouteReplace(route(pod, w.Family.Default(), w.Gateway)) }},
		{"add the pod's neighbour entry", func() error { return k.host.NeighSet(neighbour(w.Family, host, w.Address, w.PodMAC)) }},
		{"add the route to the pod", func() error { return k.host.RouteReplace(route(host, single, netip.Addr{})) }},
	} {
		if ctx.Err() != nil {
			return fmt.Errorf("%s: not begun: %w", step.what, context.Cause(ctx))
		}
		if err := step.do(); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return nil
}

// address of the pod. Nobody else on its link can have it: duplicates are not looked for, so it is usable at once.
func (w Wiring) address() *netlink.Addr {
	a := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(w.Address, w.Address.BitLen()))}
	if w.Family == IPv6 {
		a.Flags = unix.IFA_F_NODAD
	}
	return a
}

func neighbour(f Family, l netlink.Link, a netip.Addr, mac net.HardwareAddr) *netlink.Neigh {
	return &netlink.Neigh{LinkIndex: l.Attrs().Index, Family: f.number(), State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac}
}

func route(l netlink.Link, dst netip.Prefix, gateway netip.Addr) *netlink.Route {
	r := &netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(dst)}
	if dst.Addr().Is4() {
		r.Scope = netlink.SCOPE_LINK
	}
	if gateway.IsValid() {
		r.Gw, r.Scope = gateway.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	return r
}

// sysctls of one of the two links. IPv6 may be off for new links, and nobody on them advertises routes.
func (w Wiring) sysctls(link string) error {
	if w.Family == IPv4 {
		return nil
	}
	for _, s := range []struct{ key, value string }{{"disable_ipv6", "0"}, {"accept_ra", "0"}} {
		f, err := os.OpenFile("/proc/sys/net/ipv6/conf/"+link+"/"+s.key, os.O_WRONLY, 0)
		if err != nil {
			return fmt.Errorf("%w (is IPv6 off in this kernel?)", err)
		}
		_, err = f.WriteString(s.value)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}

// inPod runs f on a thread in the pod's network namespace. The thread ends with it.
func (k *kernel) inPod(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked
		if err := netns.Set(k.podNS); err != nil {
			done <- fmt.Errorf("enter the pod's network namespace: %w", err)
			return
		}
		done <- f()
	}()
	return <-done
}
