package kube

import (
	"fmt"
	"net/netip"
)

// family is what follows from the one address family that nodes, pods and Services of a cluster have.
type family struct {
	services netip.Prefix // Services' addresses; the first one is the API server's
	dns      netip.Addr   // CoreDNS's Service, which every kubelet tells its pods
	any      string       // where a program listens that others reach by the family
}

var (
	ipv4 = family{netip.MustParsePrefix("10.96.0.0/16"), netip.MustParseAddr("10.96.0.10"), "0.0.0.0"}
	// As EKS has it: a unique local range (RFC 4193), with the tenth address for the DNS.
	ipv6 = family{netip.MustParsePrefix("fd62:726c:6e65::/108"), netip.MustParseAddr("fd62:726c:6e65::a"), "::"}
)

// familyOf is the family of a cluster whose API server has the address.
func familyOf(a netip.Addr) family {
	if a.Is6() {
		return ipv6
	}
	return ipv4
}

// checkAddress wants an address that others can reach, of either family.
func checkAddress(a netip.Addr) error {
	if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLinkLocalUnicast() {
		return fmt.Errorf("%q is not the IPv4 or IPv6 address of a network interface", a)
	}
	return nil
}
