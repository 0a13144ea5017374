package enis

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
)

// ofIPv6 gives the view what counts of an ENI where pods have IPv6 addresses. They are of prefixes alone: of the ENI's own
// addresses the first is the node's, and others are nobody's.
func (e *ENI) ofIPv6(f aws.Interface) {
	e.Subnet, e.VPC, e.Addresses, e.Prefixes = netip.Prefix{}, f.VPCIPv6CIDRs, nil, f.IPv6Prefixes
	if len(f.SubnetIPv6CIDRs) > 0 {
		e.Subnet = f.SubnetIPv6CIDRs[0]
	}
	if len(f.IPv6Addresses) > 0 {
		e.Addresses = f.IPv6Addresses[:1:1]
	}
}

// IPv6Prefix has EC2 give the ENI a prefix, a /80, unless it has one: IMDS shows late what an earlier try got, of which the
// answer may be lost. It returns what the ENI has then.
func (p *Provisioner) IPv6Prefix(ctx context.Context, eniID string) (got []netip.Prefix, err error) {
	out, err := p.EC2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	switch {
	case err == nil:
		for _, n := range out.NetworkInterfaces {
			if got, err = ipv6Prefixes(n.Ipv6Prefixes); err != nil {
				return got, fmt.Errorf("ask EC2 for the IPv6 prefixes of %s: %w", eniID, err)
			}
			if len(got) > 0 {
				return got, nil
			}
		}
	case !aws.IsDenied(err): // who may not ask may still be given one
		return nil, fmt.Errorf("ask EC2 for the IPv6 prefixes of %s (ec2:DescribeNetworkInterfaces): %w", eniID, err)
	}
	one := int32(1)
	assigned, err := p.EC2.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: &eniID, Ipv6PrefixCount: &one})
	if err != nil {
		return nil, fmt.Errorf("assign an IPv6 prefix to %s (ec2:AssignIpv6Addresses): %w", eniID, err)
	}
	for _, s := range assigned.AssignedIpv6Prefixes {
		prefix, err := ipv6Prefix(s)
		if err != nil {
			return got, fmt.Errorf("assign an IPv6 prefix to %s: %w", eniID, err)
		}
		got = append(got, prefix)
	}
	if len(got) == 0 {
		return nil, fmt.Errorf("assign an IPv6 prefix to %s: EC2 gave none: %w", eniID, ErrNotUnderstood)
	}
	return got, nil
}

func ipv6Prefixes(all []types.Ipv6PrefixSpecification) (out []netip.Prefix, err error) {
	for _, s := range all {
		p, err := ipv6Prefix(value(s.Ipv6Prefix))
		if err != nil {
			return out, err
		}
		out = append(out, p)
	}
	return out, nil
}

func ipv6Prefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil || !p.Addr().Is6() || p.Addr().Is4In6() || p.Bits() < 64 || p.IsSingleIP() || p != p.Masked() {
		return p, fmt.Errorf("EC2 answered with %q, which is no IPv6 prefix of an interface: %w", s, ErrNotUnderstood)
	}
	return p, nil
}
