package guest

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const linkTimeout = 30 * time.Second

// awaitLink calls done after every change of the instance's links until it returns true or the time is over.
func awaitLink(q *LinkQuery, done func(netlink.Link) bool) error {
	if q == nil {
		return errors.New("no link given")
	}
	mac, err := net.ParseMAC(q.MAC)
	if err != nil {
		return fmt.Errorf("find link by MAC %q: %w", q.MAC, err)
	}
	timeout := linkTimeout
	if q.TimeoutMillis > 0 {
		timeout = time.Duration(q.TimeoutMillis) * time.Millisecond
	}
	updates := make(chan netlink.LinkUpdate, 64)
	stop := make(chan struct{})
	defer close(stop)
	// Subscribed before the first look, so that no change is missed in between.
	if err := netlink.LinkSubscribe(updates, stop); err != nil {
		return fmt.Errorf("subscribe to link changes: %w", err)
	}
	deadline := time.NewTimer(timeout)
	defer deadline.Stop()
	for {
		l, err := linkByMAC(mac)
		if err != nil {
			return err
		}
		if done(l) {
			return nil
		}
		select {
		case _, ok := <-updates:
			if !ok {
				return errors.New("the kernel ended the subscription to link changes")
			}
		case <-deadline.C:
			return fmt.Errorf("link with MAC %s after %v: %w", mac, timeout, os.ErrDeadlineExceeded)
		}
	}
}

// linkByMAC returns the real device (not a VLAN or the like on it) with this address, or nil.
func linkByMAC(mac net.HardwareAddr) (netlink.Link, error) {
	links, err := netlink.LinkList()
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return nil, fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		a := l.Attrs()
		kind := l.Type()
		if bytes.Equal(a.HardwareAddr, mac) && (kind == "device" || kind == "tuntap" || kind == "tun") {
			return l, nil
		}
	}
	return nil, nil
}

func (s *Server) linkUp(req Request) {
	var found Link
	err := awaitLink(req.Link, func(l netlink.Link) bool {
		if l != nil {
			found = Link{Name: l.Attrs().Name, Index: l.Attrs().Index, MTU: l.Attrs().MTU}
		}
		return l != nil
	})
	if err != nil {
		s.fail(req.ID, err)
		return
	}
	s.reply(Reply{ID: req.ID, Kind: KindLink, Link: &found})
}

func linkGone(q *LinkQuery) error {
	return awaitLink(q, func(l netlink.Link) bool { return l == nil })
}

// configure does what an instance's DHCP client and cloud-init do on first boot.
func configure(p *Primary) error {
	if p == nil {
		return errors.New("no configuration given")
	}
	mac, err := net.ParseMAC(p.MAC)
	if err != nil {
		return fmt.Errorf("configure primary link: MAC %q: %w", p.MAC, err)
	}
	l, err := linkByMAC(mac)
	if err != nil {
		return err
	}
	if l == nil {
		return fmt.Errorf("configure primary link %s: %w", p.MAC, os.ErrNotExist)
	}
	name := l.Attrs().Name
	addr := &netlink.Addr{IPNet: ipNet(p.Address)}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p.Address, name, err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	route := &netlink.Route{LinkIndex: l.Attrs().Index, Gw: p.Gateway.AsSlice(), Src: p.Address.Addr().AsSlice(), Protocol: unix.RTPROT_DHCP}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add default route via %s on %s: %w", p.Gateway, name, err)
	}
	if p.IPv6.IsValid() {
		if err := configureIPv6(l, p); err != nil {
			return err
		}
	}
	return nameInstance(p)
}

// subnetBits is how long the prefix of every IPv6 subnet of a VPC is.
const subnetBits = 64

// configureIPv6 does what a DHCPv6 client (the address, a /128) and the router's advertisements (the subnet's prefix, the
// default route) do. EC2 gives an address to one ENI, so there is no duplicate to look for.
func configureIPv6(l netlink.Link, p *Primary) error {
	name := l.Attrs().Name
	addr := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(p.IPv6, p.IPv6.BitLen())), Flags: unix.IFA_F_NODAD}
	if err := netlink.AddrReplace(l, addr); err != nil {
		return fmt.Errorf("add address %s to %s: %w", p.IPv6, name, err)
	}
	for _, r := range []*netlink.Route{
		{Dst: ipNet(netip.PrefixFrom(p.IPv6, subnetBits).Masked())},
		{Dst: ipNet(netip.PrefixFrom(netip.IPv6Unspecified(), 0)), Gw: p.GatewayIPv6.AsSlice()},
	} {
		r.LinkIndex, r.Protocol = l.Attrs().Index, unix.RTPROT_RA
		if err := netlink.RouteReplace(r); err != nil {
			return fmt.Errorf("add route to %s on %s: %w", r.Dst, name, err)
		}
	}
	return nil
}

func nameInstance(p *Primary) error {
	if err := syscall.Sethostname([]byte(p.Hostname)); err != nil {
		return fmt.Errorf("set host name %q: %w", p.Hostname, err)
	}
	hosts := fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", p.Address.Addr(), p.Hostname)
	if p.Search != "" {
		hosts = fmt.Sprintf("127.0.0.1 localhost\n%s %s.%s %s\n", p.Address.Addr(), p.Hostname, p.Search, p.Hostname)
	}
	resolv := fmt.Sprintf("nameserver %s\noptions timeout:2 attempts:5\n", p.DNS)
	if p.Search != "" {
		resolv = "search " + p.Search + "\n" + resolv
	}
	for file, content := range map[string]string{"/etc/hosts": hosts, "/etc/hostname": p.Hostname + "\n", "/etc/resolv.conf": resolv} {
		if err := writeConfig(file, content); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig replaces a file. A link (resolv.conf often is one, to a folder that isn't there in the instance) is replaced too.
func writeConfig(file, content string) error {
	tmp := filepath.Join(filepath.Dir(file), "."+filepath.Base(file)+".new")
	if err := os.WriteFile(tmp, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write %s: %w", file, err)
	}
	return nil
}

func loopbackUp() error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find loopback link: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("set loopback link up: %w", err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// clean makes a path absolute within the instance, so that nothing outside the new root is touched while it is built.
func clean(root, path string) string {
	return filepath.Join(root, filepath.Clean("/"+strings.TrimSpace(path)))
}
