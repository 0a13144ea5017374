package aws

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// keysIPv6 are the keys of an interface that are read with Options.IPv6 only: on IPv4 nodes they would be so many questions
// for nothing. AWS has each of them only where there is something to show.
var keysIPv6 = []string{"ipv6s", "ipv6-prefix", "subnet-ipv6-cidr-blocks", "vpc-ipv6-cidr-blocks"}

// mayLack says whether an interface can be complete without this key: types with one card have no network-card, an EFA-only
// interface has no IPv4, most have no prefix.
func mayLack(key string) bool {
	return slices.Contains(keysIPv6, key) ||
		slices.Contains([]string{"network-card", "local-ipv4s", "ipv4-prefix", "vpc-id", "subnet-ipv4-cidr-block"}, key)
}

// parseIPv6 takes an interface's IPv6 keys in.
func (i *Interface) parseIPv6(fields map[string]string) (err error) {
	cidrs := func(key string) (out []netip.Prefix) {
		for s := range strings.FieldsSeq(fields[key]) {
			p, perr := netip.ParsePrefix(s)
			if perr != nil || !isIPv6(p.Addr()) || p != p.Masked() {
				err = fmt.Errorf("%s: %q is not an IPv6 CIDR", key, s)
				return nil
			}
			out = append(out, p)
		}
		return out
	}
	i.SubnetIPv6CIDRs, i.VPCIPv6CIDRs = cidrs("subnet-ipv6-cidr-blocks"), cidrs("vpc-ipv6-cidr-blocks")
	i.IPv6Prefixes = cidrs("ipv6-prefix")
	for s := range strings.FieldsSeq(fields["ipv6s"]) {
		a, perr := netip.ParseAddr(s)
		if perr != nil || !isIPv6(a) {
			return fmt.Errorf("ipv6s: %q is not an IPv6 address", s)
		}
		i.IPv6Addresses = append(i.IPv6Addresses, a)
	}
	for _, p := range i.IPv6Prefixes {
		if p.Bits() < 64 || p.IsSingleIP() {
			return fmt.Errorf("ipv6-prefix: %s is not a prefix of an interface, which has 80 bits", p)
		}
	}
	return err
}

func isIPv6(a netip.Addr) bool { return a.Is6() && !a.Is4In6() && a.Zone() == "" }
