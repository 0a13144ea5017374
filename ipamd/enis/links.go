package enis

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/ipamd/rtnl"
)

// VLANPrefix starts the names of branch pods' VLAN links; the VLAN id follows.
const VLANPrefix = "vlan.eth."

// Netlink is the kernel's Links.
type Netlink struct{ h *netlink.Handle }

// NewNetlink opens a netlink socket in the current network namespace.
func NewNetlink() (*Netlink, error) {
	h, err := rtnl.Open()
	if err != nil {
		return nil, err
	}
	return &Netlink{h}, nil
}

// Close closes the socket.
func (n *Netlink) Close() { n.h.Close() }

// isENI tells links that may be an ENI from those that software makes (veth, vlan, bridge). A TAP is what an ENI looks
// like to an instance that is a namespace.
func isENI(l netlink.Link) bool {
	a := l.Attrs()
	return (l.Type() == "device" || l.Type() == "tuntap" || l.Type() == "tun") && a.Flags&net.FlagLoopback == 0 && len(a.HardwareAddr) == 6
}

// List returns the links that may be ENIs.
func (n *Netlink) List(context.Context) ([]Link, error) {
	links, err := rtnl.Dump(n.h.LinkList)
	if err != nil {
		return nil, err
	}
	var out []Link
	for _, l := range links {
		if a := l.Attrs(); isENI(l) {
			out = append(out, Link{a.Index, a.Name, a.HardwareAddr.String(), a.MTU, a.Flags&net.FlagUp != 0})
		}
	}
	return out, nil
}

// VLANs returns the ids of the VLAN links of branch pods that are there.
func (n *Netlink) VLANs(ctx context.Context) (map[int]bool, error) {
	m, err := n.Marked(ctx)
	return m.VLANs, err
}

// markPrefix starts the ifalias of each link that the CNI executable makes; "vlan=<id>" and "ip=<address>" follow.
const markPrefix = "branchline:"

// Marked is what the links of pods say of themselves, whichever sandbox they belong to.
type Marked struct {
	// VLANs holds the ids in marks, and those of all links that are named like a branch pod's.
	VLANs map[int]bool
	// Standard holds those whose marks say that they are a standard-mode pod's. All others count as strict.
	Standard map[int]bool
	// Addresses are the pods'.
	Addresses map[netip.Addr]bool
	// Regular holds, by address, whose the links of regular pods are that have one interface: nobody's where two say that they are.
	Regular map[netip.Addr]Sandbox
}

// Sandbox is an interface of a sandbox.
type Sandbox struct{ ContainerID, IfName string }

// Marked reads the marks and names of all links.
func (n *Netlink) Marked(context.Context) (Marked, error) {
	links, err := rtnl.Dump(n.h.LinkList)
	if err != nil {
		return Marked{}, fmt.Errorf("list the links: %w", err)
	}
	m := Marked{VLANs: map[int]bool{}, Standard: map[int]bool{}, Addresses: map[netip.Addr]bool{}, Regular: map[netip.Addr]Sandbox{}}
	for _, l := range links {
		m.read(l.Attrs().Name, l.Attrs().Alias)
	}
	return m, nil
}

func (m Marked) read(name, alias string) {
	if id, err := strconv.Atoi(strings.TrimPrefix(name, VLANPrefix)); err == nil && strings.HasPrefix(name, VLANPrefix) {
		m.VLANs[id] = true
	}
	mark, ok := strings.CutPrefix(alias, markPrefix)
	if !ok {
		return
	}
	vlan, standard, several, address := 0, false, false, netip.Addr{}
	owner, _, _ := strings.Cut(mark, " ")
	for field := range strings.FieldsSeq(mark) {
		key, value, _ := strings.Cut(field, "=")
		switch key {
		case "vlan":
			if id, err := strconv.Atoi(value); err == nil {
				m.VLANs[id], vlan = true, id
			}
		case "mode":
			standard = value == "standard"
		case "ip":
			if addr, err := netip.ParseAddr(value); err == nil {
				m.Addresses[addr], address = true, addr
			}
		case "further", "number":
			several = true
		}
	}
	if id, ifName, ok := strings.Cut(owner, "/"); ok && id != "" && ifName != "" && vlan == 0 && !several && address.IsValid() {
		s := Sandbox{id, ifName}
		if other, twice := m.Regular[address]; twice && other != s {
			s = Sandbox{}
		}
		m.Regular[address] = s
	}
	if standard && vlan != 0 {
		m.Standard[vlan] = true
	}
}

// SetUp brings a link up, with its MTU and its address.
func (n *Netlink) SetUp(_ context.Context, index, mtu int, address netip.Addr) error {
	l, err := n.h.LinkByIndex(index)
	if err != nil {
		return err
	}
	if l.Attrs().MTU != mtu {
		if err := n.h.LinkSetMTU(l, mtu); err != nil {
			return fmt.Errorf("set MTU %d: %w", mtu, err)
		}
	}
	if l.Attrs().Flags&net.FlagUp == 0 {
		if err := n.h.LinkSetUp(l); err != nil {
			return fmt.Errorf("bring it up: %w", err)
		}
	}
	if !address.IsValid() {
		return nil
	}
	// A /32 without a route: the ENI answers and asks for its own neighbours, and the main table keeps sending by the
	// primary ENI.
	err = n.h.AddrAdd(l, &netlink.Addr{
		IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(32, 32)}, Flags: unix.IFA_F_NOPREFIXROUTE,
	})
	if err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("add address %s: %w", address, err)
	}
	return nil
}

// Watch calls eni for each event of a link that may be an ENI and vlan for each of a branch pod's VLAN link, until ctx
// ends. It subscribes again when the socket fails, and calls both then, because events may have been lost.
func (n *Netlink) Watch(ctx context.Context, eni, vlan func()) {
	watch(ctx, func(events chan<- netlink.LinkUpdate, done <-chan struct{}) error {
		return netlink.LinkSubscribeWithOptions(events, done, netlink.LinkSubscribeOptions{ErrorCallback: func(error) {}})
	}, eni, vlan)
}

// watch is Watch with the subscription's maker, which sends until done is closed and closes events then.
func watch(ctx context.Context, subscribe func(events chan<- netlink.LinkUpdate, done <-chan struct{}) error, eni, vlan func()) {
	for ctx.Err() == nil {
		events, done := make(chan netlink.LinkUpdate, 64), make(chan struct{})
		if err := subscribe(events, done); err != nil {
			close(done)
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // nothing to wait for but the kernel's memory
			}
			continue
		}
		eni()
		vlan()
		forward(ctx, events, eni, vlan)
		close(done)
		for range events { // its sender may be waiting for room
		}
	}
}

func forward(ctx context.Context, events <-chan netlink.LinkUpdate, eni, vlan func()) {
	for {
		select {
		case <-ctx.Done():
			return
		case e, ok := <-events:
			if !ok {
				return
			}
			switch {
			case e.Link == nil:
			case isENI(e.Link):
				eni()
			case strings.HasPrefix(e.Attrs().Name, VLANPrefix):
				vlan()
			}
		}
	}
}
