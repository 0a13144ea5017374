//go:build kernel

package hostnet

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Commands and attributes of IPVS (linux/ip_vs.h).
const (
	ipvsNewService, ipvsNewDestination = 1, 5

	ipvsService, ipvsDestination = 1, 2

	serviceFamily, serviceProtocol, serviceAddress, servicePort, serviceScheduler, serviceFlags, serviceTimeout, serviceNetmask = 1, 2, 3, 4, 6, 7, 8, 9

	destinationAddress, destinationPort, destinationMethod, destinationWeight, destinationUpper, destinationLower, destinationFamily = 1, 2, 3, 4, 5, 6, 11
)

// balance makes a virtual server with one real server behind it, as kube-proxy does: by masquerading.
func (w *natWorld) balance(t *testing.T, from, to netip.AddrPort) {
	t.Helper()
	address := func(a netip.Addr) []byte { return append(a.AsSlice(), make([]byte, 16-a.BitLen()/8)...) }
	port := func(p netip.AddrPort) []byte { return binary.BigEndian.AppendUint16(nil, p.Port()) }
	service := nl.NewRtAttr(ipvsService|unix.NLA_F_NESTED, nil)
	service.AddRtAttr(serviceFamily, nl.Uint16Attr(unix.AF_INET))
	service.AddRtAttr(serviceProtocol, nl.Uint16Attr(unix.IPPROTO_TCP))
	service.AddRtAttr(serviceAddress, address(from.Addr()))
	service.AddRtAttr(servicePort, port(from))
	service.AddRtAttr(serviceScheduler, nl.ZeroTerminated("rr"))
	service.AddRtAttr(serviceFlags, make([]byte, 8))
	service.AddRtAttr(serviceTimeout, nl.Uint32Attr(0))
	service.AddRtAttr(serviceNetmask, []byte{255, 255, 255, 255})
	destination := nl.NewRtAttr(ipvsDestination|unix.NLA_F_NESTED, nil)
	destination.AddRtAttr(destinationAddress, address(to.Addr()))
	destination.AddRtAttr(destinationPort, port(to))
	destination.AddRtAttr(destinationMethod, nl.Uint32Attr(0))
	destination.AddRtAttr(destinationWeight, nl.Uint32Attr(1))
	destination.AddRtAttr(destinationUpper, nl.Uint32Attr(0))
	destination.AddRtAttr(destinationLower, nl.Uint32Attr(0))
	destination.AddRtAttr(destinationFamily, nl.Uint16Attr(unix.AF_INET))
	w.node.Do(t, func() error {
		family, err := netlink.GenlFamilyGet("IPVS")
		if err != nil {
			return err
		}
		if err := genetlink(family.ID, ipvsNewService, service); err != nil {
			return err
		}
		return genetlink(family.ID, ipvsNewDestination, service, destination)
	})
}

func genetlink(family uint16, command uint8, attrs ...*nl.RtAttr) error {
	r := nl.NewNetlinkRequest(int(family), unix.NLM_F_ACK)
	r.AddData(&nl.Genlmsg{Command: command, Version: 1})
	for _, a := range attrs {
		r.AddData(a)
	}
	_, err := r.Execute(unix.NETLINK_GENERIC, 0)
	return err
}

// IPVS takes what pods send to a Service for this node's own and sends it on by itself, without a look at its source.
func TestP34WhatIPVSForwardsLeavesByItsPodsENI(t *testing.T) {
	w := newNATWorld(t, false)
	write(t, w.node, "ipv4/vs/conntrack", "1") // as kube-proxy has it
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "kube-ipvs0"
	if err := w.node.Handle.LinkAdd(&netlink.Dummy{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	// Services with an endpoint in the VPC and with one outside, and one of NodePort for each pod.
	inside, outside := netip.MustParseAddr("172.20.0.21"), netip.MustParseAddr("172.20.0.22")
	for _, a := range []netip.Addr{inside, outside} {
		w.address(t, w.node, "kube-ipvs0", a)
	}
	w.balance(t, netip.AddrPortFrom(inside, tellPort), netip.AddrPortFrom(w.addr[inVPC], tellPort))
	w.balance(t, netip.AddrPortFrom(outside, tellPort), netip.AddrPortFrom(w.addr[outsideVPC], tellPort))
	const first = 31000
	for i, pod := range podNames {
		w.balance(t, netip.AddrPortFrom(w.nodeAddr, uint16(first+i)), netip.AddrPortFrom(w.addr[pod], tellPort))
	}
	w.set(t, w.on())
	for i, pod := range podNames {
		for _, caller := range []string{inVPC, outsideVPC} {
			w.wantSeen(t, "NodePort: "+caller+" to "+pod, w.vpc, w.addr[caller], w.nodeAddr, uint16(first+i), w.addr[caller])
		}
		if pod == onBranch {
			// Its way out is known by the link that it comes in by, which what IPVS sends has no more.
			w.wantSeen(t, "ClusterIP: "+pod, w.pods[pod], netip.Addr{}, inside, tellPort)
			continue
		}
		w.wantSeen(t, "ClusterIP, endpoint in the VPC: "+pod, w.pods[pod], netip.Addr{}, inside, tellPort, w.addr[pod])
		w.wantSeen(t, "ClusterIP, endpoint outside: "+pod, w.pods[pod], netip.Addr{}, outside, tellPort, w.nodeAddr)
	}
}
