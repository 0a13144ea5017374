package enis

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// oneENI is EC2 with one ENI, which answers with prefixes as they are written.
type oneENI struct {
	EC2
	has, gives []string
	asked      int
}

func (o *oneENI) DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	var n types.NetworkInterface
	for _, p := range o.has {
		n.Ipv6Prefixes = append(n.Ipv6Prefixes, types.Ipv6PrefixSpecification{Ipv6Prefix: &p})
	}
	return &ec2.DescribeNetworkInterfacesOutput{NetworkInterfaces: []types.NetworkInterface{n}}, nil
}

func (o *oneENI) AssignIpv6Addresses(context.Context, *ec2.AssignIpv6AddressesInput, ...func(*ec2.Options)) (*ec2.AssignIpv6AddressesOutput, error) {
	o.asked++
	return &ec2.AssignIpv6AddressesOutput{AssignedIpv6Prefixes: o.gives}, nil
}

// TestOnlyAPrefixOfAnENIIsTakenFromEC2: pods would get addresses that are nobody's of anything else.
func TestOnlyAPrefixOfAnENIIsTakenFromEC2(t *testing.T) {
	const good = "2001:db8:0:1:7::/80"
	ask := func(o *oneENI) ([]netip.Prefix, error) {
		return (&Provisioner{EC2: o}).IPv6Prefix(t.Context(), "eni-1")
	}
	want := []netip.Prefix{netip.MustParsePrefix(good)}
	for _, o := range []*oneENI{{has: []string{good}}, {gives: []string{good}}} {
		if got, err := ask(o); err != nil || !slices.Equal(got, want) {
			t.Errorf("%+v: %v, %v", o, got, err)
		}
	}
	for _, text := range []string{"", "::/0", "2001:db8::/32", "2001:db8:0:1::7/128", "2001:db8:0:1:7::1/80", "192.168.0.16/28", "::ffff:192.168.0.0/112", "2001:db8::zz/80", "eni-1"} {
		for _, o := range []*oneENI{{has: []string{text}}, {gives: []string{text}}} {
			if got, err := ask(o); !errors.Is(err, ErrNotUnderstood) || len(got) > 0 {
				t.Errorf("EC2 has %q and gives %q: %v, %v", o.has, o.gives, got, err)
			}
			if o.has != nil && o.asked > 0 {
				t.Errorf("EC2 has %q, and a second one is asked for", o.has)
			}
		}
	}
	if got, err := ask(&oneENI{}); !errors.Is(err, ErrNotUnderstood) || got != nil {
		t.Errorf("EC2 gives none: %v, %v", got, err)
	}
}
