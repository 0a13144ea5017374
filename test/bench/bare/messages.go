package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// podIndex is the pod's link's interface index: nothing else is in a new sandbox but lo.
const podIndex = 1000

// The numbers of the wiring contract that both sides share.
const (
	mainTable, localPodsTable = 254, 511
	fromPodPriority           = 1536
)

// IFLA_INET_CONF and IPV4_DEVCONF_RP_FILTER of linux/if_link.h and linux/ip.h, and the value.
const inetConf, rpFilter, looseRPFilter = 1, 8, 2

// IFLA_INET6_ADDR_GEN_MODE of linux/if_link.h and IN6_ADDR_GEN_MODE_NONE: the host veth gets no link-local address.
const addrGenMode, genNone = 8, 1

// settings of the host veth, below /proc/sys/net.
var settings = map[string]string{"ipv6/conf/%s/accept_ra": "0", "ipv6/conf/%s/accept_redirects": "0"}

// queues of each end of a veth, as it has by default. Without the attribute the kernel makes one for each CPU and then
// takes all but one out of use, for which it waits, holding RTNL, until no packet is on its way any more.
const queues = 1

var gateway = netip.AddrFrom4([4]byte{169, 254, 1, 1})

// add makes everything, in the order of the CNI executable's plan.
func (w wiring) add() error {
	host, err := openSocket()
	if err != nil {
		return err
	}
	ns, err := os.Open(w.netns)
	if err != nil {
		return err
	}
	pod, err := openSocketIn(ns)
	if err != nil {
		return err
	}
	if err := host.send("make the veth", w.newVeth(int(ns.Fd()))); err != nil {
		return err
	}
	alias := link(unix.RTM_NEWLINK, 0, w.index, 0)
	alias.AddData(nl.NewRtAttr(unix.IFLA_IFALIAS, []byte(w.alias)))
	families := nl.NewRtAttr(unix.IFLA_AF_SPEC, nil)
	families.AddRtAttr(unix.AF_INET, nil).AddRtAttr(inetConf, nil).AddRtAttr(rpFilter, nl.Uint32Attr(looseRPFilter))
	families.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(addrGenMode, []byte{genNone})
	alias.AddData(families)
	if err := host.send("mark the veth", alias); err != nil {
		return err
	}
	for setting, value := range settings {
		if err := os.WriteFile("/proc/sys/net/"+fmt.Sprintf(setting, w.veth), []byte(value), 0); err != nil {
			return err
		}
	}
	gw := gateway.AsSlice()
	for _, m := range []struct {
		to      *socket
		what    string
		message *nl.NetlinkRequest
	}{
		{host, "bring up the veth", link(unix.RTM_NEWLINK, 0, w.index, unix.IFF_UP)},
		{pod, "bring up the pod's link", link(unix.RTM_NEWLINK, 0, podIndex, unix.IFF_UP)},
		{pod, "add the pod's address", address(w.address)},
		{pod, "add the gateway's neighbour", neighbour(gateway, w.hostMAC, podIndex)},
		{pod, "add the gateway's route", route(mainTable, unix.RT_SCOPE_LINK, 32, gw, nil, podIndex)},
		{pod, "add the default route", route(mainTable, unix.RT_SCOPE_UNIVERSE, 0, nil, gw, podIndex)},
		{host, "add the pod's neighbour", neighbour(w.address, w.podMAC, w.index)},
		{host, "add the pod's route", route(localPodsTable, unix.RT_SCOPE_LINK, 32, w.address.AsSlice(), nil, w.index)},
	} {
		if err := m.to.send(m.what, m.message); err != nil {
			return err
		}
	}
	if w.table == mainTable || w.table == 0 {
		return nil
	}
	return host.send("add the pod's rule", rule(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL, w.address, w.table))
}

func del(veth string, address netip.Addr, table int) error {
	host, err := openSocket()
	if err != nil {
		return err
	}
	if table != mainTable && table != 0 {
		if err := host.send("delete the pod's rule", rule(unix.RTM_DELRULE, 0, address, table)); err != nil {
			return err
		}
	}
	gone := link(unix.RTM_DELLINK, 0, 0, 0)
	gone.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(veth)))
	return host.send("delete the veth", gone)
}

func (w wiring) newVeth(ns int) *nl.NetlinkRequest {
	m := link(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL, w.index, 0)
	m.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(w.veth)))
	m.AddData(nl.NewRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(w.mtu))))
	m.AddData(nl.NewRtAttr(unix.IFLA_ADDRESS, w.hostMAC))
	for _, kind := range []int{unix.IFLA_NUM_TX_QUEUES, unix.IFLA_NUM_RX_QUEUES} {
		m.AddData(nl.NewRtAttr(kind, nl.Uint32Attr(queues)))
	}
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, nl.NonZeroTerminated("veth"))
	peer := info.AddRtAttr(nl.IFLA_INFO_DATA, nil).AddRtAttr(nl.VETH_INFO_PEER, nil)
	end := nl.NewIfInfomsg(unix.AF_UNSPEC)
	end.Index = podIndex
	peer.AddChild(end)
	peer.AddRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated("eth0"))
	peer.AddRtAttr(unix.IFLA_MTU, nl.Uint32Attr(uint32(w.mtu)))
	peer.AddRtAttr(unix.IFLA_ADDRESS, w.podMAC)
	for _, kind := range []int{unix.IFLA_NUM_TX_QUEUES, unix.IFLA_NUM_RX_QUEUES} {
		peer.AddRtAttr(kind, nl.Uint32Attr(queues))
	}
	peer.AddRtAttr(unix.IFLA_NET_NS_FD, nl.Uint32Attr(uint32(ns)))
	m.AddData(info)
	return m
}

func link(kind, flags, index int, up uint32) *nl.NetlinkRequest {
	m := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	info := nl.NewIfInfomsg(unix.AF_UNSPEC)
	info.Index, info.Flags, info.Change = int32(index), up, up
	m.AddData(info)
	return m
}

func address(a netip.Addr) *nl.NetlinkRequest {
	m := nl.NewNetlinkRequest(unix.RTM_NEWADDR, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	info := nl.NewIfAddrmsg(unix.AF_INET)
	info.Prefixlen, info.Index = 32, podIndex
	m.AddData(info)
	m.AddData(nl.NewRtAttr(unix.IFA_LOCAL, a.AsSlice()))
	m.AddData(nl.NewRtAttr(unix.IFA_ADDRESS, a.AsSlice()))
	return m
}

// neighbourMessage is struct ndmsg of rtnetlink(7).
type neighbourMessage struct{ index int32 }

func (n neighbourMessage) Len() int { return 12 }

func (n neighbourMessage) Serialize() []byte {
	b := make([]byte, 12)
	b[0] = unix.AF_INET
	nl.NativeEndian().PutUint32(b[4:], uint32(n.index))
	nl.NativeEndian().PutUint16(b[8:], unix.NUD_PERMANENT)
	return b
}

func neighbour(a netip.Addr, mac net.HardwareAddr, index int) *nl.NetlinkRequest {
	m := nl.NewNetlinkRequest(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	m.AddData(neighbourMessage{int32(index)})
	m.AddData(nl.NewRtAttr(unix.NDA_DST, a.AsSlice()))
	m.AddData(nl.NewRtAttr(unix.NDA_LLADDR, mac))
	return m
}

func route(table, scope, bits int, dst, via []byte, index int) *nl.NetlinkRequest {
	m := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
	r := nl.NewRtMsg()
	r.Family, r.Dst_len, r.Scope = unix.AF_INET, uint8(bits), uint8(scope)
	r.Table = unix.RT_TABLE_UNSPEC
	m.AddData(r)
	if dst != nil {
		m.AddData(nl.NewRtAttr(unix.RTA_DST, dst))
	}
	if via != nil {
		m.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, via))
	}
	m.AddData(nl.NewRtAttr(unix.RTA_OIF, nl.Uint32Attr(uint32(index))))
	m.AddData(nl.NewRtAttr(unix.RTA_TABLE, nl.Uint32Attr(uint32(table))))
	return m
}

func rule(kind, flags int, from netip.Addr, table int) *nl.NetlinkRequest {
	m := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	r := nl.NewRtMsg()
	// The same layout as struct fib_rule_hdr, whose action is at the place of the route's type.
	r.Family, r.Src_len, r.Type, r.Protocol, r.Scope, r.Table = unix.AF_INET, 32, nl.FR_ACT_TO_TBL, 0, 0, unix.RT_TABLE_UNSPEC
	m.AddData(r)
	m.AddData(nl.NewRtAttr(nl.FRA_SRC, from.AsSlice()))
	m.AddData(nl.NewRtAttr(nl.FRA_PRIORITY, nl.Uint32Attr(fromPodPriority)))
	m.AddData(nl.NewRtAttr(nl.FRA_TABLE, nl.Uint32Attr(uint32(table))))
	return m
}

// socket is a netlink socket that is asked one thing at a time.
type socket struct {
	fd     int
	answer [8192]byte
}

func openSocket() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return &socket{fd: fd}, nil
}

// openSocketIn opens a socket in another namespace and comes back.
func openSocketIn(ns *os.File) (*socket, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, err
	}
	defer own.Close()
	if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, fmt.Errorf("enter %s: %w", ns.Name(), err)
	}
	s, err := openSocket()
	return s, errors.Join(err, unix.Setns(int(own.Fd()), unix.CLONE_NEWNET))
}

func (s *socket) send(what string, m *nl.NetlinkRequest) error {
	if err := unix.Sendto(s.fd, m.Serialize(), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	n, _, err := unix.Recvfrom(s.fd, s.answer[:], 0)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	if n < unix.SizeofNlMsghdr+4 {
		return fmt.Errorf("%s: an answer of %d bytes", what, n)
	}
	if errno := int32(nl.NativeEndian().Uint32(s.answer[unix.SizeofNlMsghdr:])); errno != 0 {
		return fmt.Errorf("%s: %w", what, unix.Errno(-errno))
	}
	return nil
}
