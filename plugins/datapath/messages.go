package datapath

import (
	"encoding/binary"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// linkGroup is in every link that we make from its birth on: the mark, which says whose it is, needs a request of its
// own. The number says nothing to anyone else.
const linkGroup = 0xb1a7

// doomedGroup is or'ed with an interface index: a group of links that are about to be deleted.
const doomedGroup = 1 << 31

// What the libraries don't name: of linux/if.h, linux/if_link.h, linux/ip.h and linux/rtnetlink.h.
const (
	iflaInetConf         = 1
	iflaInet6AddrGenMode = 8
	in6AddrGenModeNone   = 1
	ipv4DevconfRPFilter  = 8
	rtextFilterSkipStats = 1 << 3
	operUp               = 6
)

const create = unix.NLM_F_CREATE | unix.NLM_F_EXCL

func vlanRequest(s AddVLAN) *request {
	r := newRequest(unix.RTM_NEWLINK, create)
	r.linkHeader(0, true)
	r.text(unix.IFLA_IFNAME, s.Name)
	r.number(unix.IFLA_LINK, uint32(s.TrunkIfindex))
	r.attr(unix.IFLA_ADDRESS, s.MAC)
	r.number(unix.IFLA_GROUP, linkGroup)
	r.nest(unix.IFLA_LINKINFO, func() {
		r.text(unix.IFLA_INFO_KIND, "vlan")
		r.nest(unix.IFLA_INFO_DATA, func() {
			r.attr(nl.IFLA_VLAN_ID, nl.Uint16Attr(uint16(s.ID)))
			r.attr(nl.IFLA_VLAN_PROTOCOL, nl.BEUint16Attr(unix.ETH_P_8021Q))
		})
	})
	return r
}

func vethRequest(s AddVeth, podNS int) *request {
	r := newRequest(unix.RTM_NEWLINK, create)
	// The kernel refuses to bring the peer up as long as it has none itself, which is until both are born.
	end := func(name string, mac net.HardwareAddr, up bool) {
		r.linkHeader(0, up)
		r.text(unix.IFLA_IFNAME, name)
		r.attr(unix.IFLA_ADDRESS, mac)
		r.number(unix.IFLA_MTU, uint32(s.MTU))
		// Not asked, the kernel makes one queue per CPU and then takes all but one back, which waits for every packet
		// under way while no other link of the node can be changed.
		r.number(unix.IFLA_NUM_TX_QUEUES, 1)
		r.number(unix.IFLA_NUM_RX_QUEUES, 1)
	}
	end(s.Host, s.HostMAC, true)
	r.number(unix.IFLA_GROUP, linkGroup)
	r.nest(unix.IFLA_LINKINFO, func() {
		r.text(unix.IFLA_INFO_KIND, "veth")
		r.nest(unix.IFLA_INFO_DATA, func() {
			r.nest(nl.VETH_INFO_PEER, func() {
				end(s.Pod, s.PodMAC, false)
				r.number(unix.IFLA_NET_NS_FD, uint32(podNS))
			})
		})
	})
	return r
}

// markRequest gives a new link what it can't be born with. One that gets no link-local address costs less: the kernel
// would look for duplicates of it, and then, with each change of a link, walk through those of all links, while no other
// link of the node can be changed.
func markRequest(index int, m Mark, linkLocal bool) *request {
	r := newRequest(unix.RTM_SETLINK, 0).link(index)
	r.text(unix.IFLA_IFALIAS, m.String())
	r.nest(unix.IFLA_AF_SPEC, func() {
		r.nest(unix.AF_INET, func() {
			r.nest(iflaInetConf, func() { r.number(ipv4DevconfRPFilter, looseRPFilter) })
		})
		if !linkLocal {
			r.nest(unix.AF_INET6, func() { r.attr(iflaInet6AddrGenMode, []byte{in6AddrGenModeNone}) })
		}
	})
	return r
}

func upRequest(index int) *request {
	r := newRequest(unix.RTM_SETLINK, 0)
	r.linkHeader(index, true)
	return r
}

func getLinkRequest(name string) *request {
	r := newRequest(unix.RTM_GETLINK, 0).link(0)
	r.text(unix.IFLA_IFNAME, name)
	r.number(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	return r
}

func linkRequest(index int) *request {
	r := newRequest(unix.RTM_GETLINK, 0).link(index)
	r.number(unix.IFLA_EXT_MASK, rtextFilterSkipStats)
	return r
}

func deleteLinkRequest(index int) *request { return newRequest(unix.RTM_DELLINK, 0).link(index) }

func groupRequest(index int, group uint32) *request {
	r := newRequest(unix.RTM_SETLINK, 0).link(index)
	r.number(unix.IFLA_GROUP, group)
	return r
}

func deleteGroupRequest(group uint32) *request {
	r := newRequest(unix.RTM_DELLINK, 0).link(0)
	r.number(unix.IFLA_GROUP, group)
	return r
}

// linkState is what the kernel says of a link.
type linkState struct {
	index, peer int  // peer is the other end's index in its own namespace, or the parent's
	up, sends   bool // sends: it is up, has a carrier, and the kernel knows (RFC 2863)
	kind, alias string
	group       uint32
}

func parseLink(b []byte) (l linkState) {
	if len(b) < unix.SizeofIfInfomsg {
		return l
	}
	l.index = int(binary.NativeEndian.Uint32(b[4:]))
	l.up = binary.NativeEndian.Uint32(b[8:])&unix.IFF_UP != 0
	attributes(b[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.IFLA_IFALIAS:
			l.alias = zeroTerminated(value)
		case kind == unix.IFLA_OPERSTATE && len(value) == 1:
			l.sends = value[0] == operUp
		case kind == unix.IFLA_GROUP && len(value) == 4:
			l.group = binary.NativeEndian.Uint32(value)
		case kind == unix.IFLA_LINK && len(value) == 4:
			l.peer = int(binary.NativeEndian.Uint32(value))
		case kind == unix.IFLA_LINKINFO:
			attributes(value, func(kind uint16, value []byte) {
				if kind == unix.IFLA_INFO_KIND {
					l.kind = zeroTerminated(value)
				}
			})
		}
	})
	return l
}

func family(ipv6 bool) byte {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

const replace = unix.NLM_F_CREATE | unix.NLM_F_REPLACE

func addressRequest(s AddAddress, index int) *request {
	a := s.Address.Addr()
	var flags byte
	if a.Is6() {
		flags = unix.IFA_F_NODAD
	}
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if a.IsLinkLocalUnicast() {
		scope = unix.RT_SCOPE_LINK
	}
	r := newRequest(unix.RTM_NEWADDR, replace)
	r.bytes(family(a.Is6()), byte(s.Address.Bits()), flags, scope)
	r.uint32(uint32(index))
	r.address(unix.IFA_LOCAL, a)
	r.address(unix.IFA_ADDRESS, a)
	return r
}

func neighbourRequest(s AddNeighbour, index int) *request {
	r := newRequest(unix.RTM_NEWNEIGH, replace)
	r.bytes(family(s.Address.Is6()), 0, 0, 0)
	r.uint32(uint32(index))
	r.uint16(unix.NUD_PERMANENT)
	r.bytes(0, 0)
	r.address(unix.NDA_DST, s.Address)
	r.attr(unix.NDA_LLADDR, s.MAC)
	return r
}

func routeRequest(s AddRoute, index int) *request {
	scope := byte(unix.RT_SCOPE_LINK)
	if s.Gateway.IsValid() {
		scope = unix.RT_SCOPE_UNIVERSE
	}
	r := newRequest(unix.RTM_NEWROUTE, replace)
	r.bytes(family(s.Dst.Addr().Is6()), byte(s.Dst.Bits()), 0, 0, unix.RT_TABLE_UNSPEC, unix.RTPROT_BOOT, scope, unix.RTN_UNICAST)
	r.uint32(0)
	if s.Dst.Bits() > 0 {
		r.address(unix.RTA_DST, s.Dst.Addr())
	}
	if s.Gateway.IsValid() {
		r.address(unix.RTA_GATEWAY, s.Gateway)
	}
	r.number(unix.RTA_OIF, uint32(index))
	r.number(unix.RTA_TABLE, uint32(s.Table))
	return r
}

func deleteRouteRequest(s DeleteRoute) *request {
	r := newRequest(unix.RTM_DELROUTE, 0)
	r.bytes(family(s.Address.Is6()), byte(s.Address.BitLen()), 0, 0, unix.RT_TABLE_UNSPEC, 0, unix.RT_SCOPE_NOWHERE, unix.RTN_UNICAST)
	r.uint32(0)
	r.address(unix.RTA_DST, s.Address)
	r.number(unix.RTA_TABLE, uint32(s.Table))
	return r
}

func fibMatchRequest(a netip.Addr) *request {
	r := newRequest(unix.RTM_GETROUTE, 0)
	r.bytes(family(a.Is6()), byte(a.BitLen()), 0, 0, 0, 0, 0, 0)
	r.uint32(unix.RTM_F_LOOKUP_TABLE | unix.RTM_F_FIB_MATCH)
	r.address(unix.RTA_DST, a)
	return r
}

func parseRoute(b []byte) (f fibRoute) {
	if len(b) < unix.SizeofRtMsg {
		return f
	}
	f.kind, f.table = b[7], int(b[4])
	attributes(b[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch {
		case kind == unix.RTA_TABLE && len(value) == 4:
			f.table = int(binary.NativeEndian.Uint32(value))
		case kind == unix.RTA_OIF && len(value) == 4:
			f.index = int(binary.NativeEndian.Uint32(value))
		}
	})
	return f
}

func addRuleRequest(r Rule) *request    { return ruleRequest(unix.RTM_NEWRULE, create, r) }
func deleteRuleRequest(r Rule) *request { return ruleRequest(unix.RTM_DELRULE, 0, r) }

func ruleRequest(kind, flags uint16, rule Rule) *request {
	r := newRequest(kind, flags)
	bits := func(a netip.Addr) byte {
		if !a.IsValid() {
			return 0
		}
		return byte(a.BitLen())
	}
	r.bytes(family(rule.IPv6), bits(rule.To), bits(rule.From), 0, unix.RT_TABLE_UNSPEC, 0, 0, unix.FR_ACT_TO_TBL)
	r.uint32(0)
	if rule.From.IsValid() {
		r.address(unix.FRA_SRC, rule.From)
	}
	if rule.To.IsValid() {
		r.address(unix.FRA_DST, rule.To)
	}
	if rule.Iif != "" {
		r.text(unix.FRA_IIFNAME, rule.Iif)
	}
	r.number(unix.FRA_PRIORITY, uint32(rule.Priority))
	if rule.Table != 0 {
		r.number(unix.FRA_TABLE, uint32(rule.Table))
	}
	return r
}
