package ec2

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/aws"
)

// TestIPv6OfAnInstanceAndItsENIs goes the way of a node of an IPv6 cluster, with AWS's own client.
func TestIPv6OfAnInstanceAndItsENIs(t *testing.T) {
	f := newFixture(t, Config{})
	ctx := t.Context()
	v, err := f.ec2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("10.9.0.0/16"), AmazonProvidedIpv6CidrBlock: awssdk.Bool(true)})
	if err != nil {
		t.Fatal(err)
	}
	described, err := f.ec2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{VpcIds: []string{*v.Vpc.VpcId}})
	if err != nil {
		t.Fatal(err)
	}
	block := netip.MustParsePrefix(*described.Vpcs[0].Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlock)
	if block.Bits() != 56 {
		t.Fatalf("the VPC has %s", block)
	}
	ipv6 := netip.PrefixFrom(block.Addr(), 64).String()
	s, err := f.ec2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("10.9.0.0/24"), Ipv6CidrBlock: &ipv6})
	if err != nil {
		t.Fatal(err)
	}
	if a := s.Subnet.Ipv6CidrBlockAssociationSet; len(a) != 1 || *a[0].Ipv6CidrBlock != ipv6 || a[0].Ipv6CidrBlockState.State != types.SubnetCidrBlockStateCodeAssociated {
		t.Errorf("%+v", a)
	}
	run := func(kind types.InstanceType) (instance types.Instance) {
		out, err := f.ec2.RunInstances(ctx, &ec2.RunInstancesInput{
			ImageId: awssdk.String("ami-1"), InstanceType: kind, MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1), SubnetId: s.Subnet.SubnetId, Ipv6AddressCount: awssdk.Int32(1),
		})
		if err != nil {
			t.Fatal(err)
		}
		return out.Instances[0]
	}
	i := run(types.InstanceTypeM5Large)
	primary := i.NetworkInterfaces[0]
	if len(primary.Ipv6Addresses) != 1 {
		t.Fatalf("%+v", primary)
	}
	assign := func(eni *string, n int32) (*ec2.AssignIpv6AddressesOutput, error) {
		return f.ec2.AssignIpv6Addresses(ctx, &ec2.AssignIpv6AddressesInput{NetworkInterfaceId: eni, Ipv6PrefixCount: &n})
	}
	got, err := assign(primary.NetworkInterfaceId, 1)
	if err != nil {
		t.Fatal(err)
	}
	prefix := netip.MustParsePrefix(got.AssignedIpv6Prefixes[0])
	if prefix.Bits() != 80 || prefix != prefix.Masked() || !strings.HasPrefix(prefix.String(), strings.TrimSuffix(netip.MustParsePrefix(ipv6).Addr().String(), "::")) {
		t.Errorf("assigned %s of %s", prefix, ipv6)
	}
	out, err := f.ec2.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{*primary.NetworkInterfaceId}})
	if err != nil {
		t.Fatal(err)
	}
	if n := out.NetworkInterfaces[0]; len(n.Ipv6Prefixes) != 1 || *n.Ipv6Prefixes[0].Ipv6Prefix != prefix.String() || *n.Ipv6Addresses[0].Ipv6Address != *primary.Ipv6Addresses[0].Ipv6Address {
		t.Errorf("%+v", n)
	}
	m, _ := f.region.Metadata(*i.InstanceId).Instance()
	if shown := m.Interfaces[0]; shown.IPv6Prefixes[0] != prefix || shown.SubnetIPv6CIDR.String() != ipv6 || shown.VPCIPv6CIDR != block || len(shown.IPv6Addresses) != 1 {
		t.Errorf("IMDS shows %+v", shown)
	}
	if _, err := assign(primary.NetworkInterfaceId, 9); aws.Code(err) != "PrivateIpAddressLimitExceeded" {
		t.Errorf("beyond the type's limit: %v", err)
	}
	old := run(types.InstanceType("m4.large"))
	if _, err := assign(old.NetworkInterfaces[0].NetworkInterfaceId, 1); aws.Code(err) != "UnsupportedOperation" {
		t.Errorf("on a type without prefixes: %v", err)
	}

	branch, err := f.ec2.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: s.Subnet.SubnetId, Ipv6AddressCount: awssdk.Int32(1)})
	if err != nil {
		t.Fatal(err)
	}
	address := *branch.NetworkInterface.Ipv6Addresses[0].Ipv6Address
	_, err = f.ec2.UnassignIpv6Addresses(ctx, &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: branch.NetworkInterface.NetworkInterfaceId, Ipv6Addresses: []string{address}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.ec2.UnassignIpv6Addresses(ctx, &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: branch.NetworkInterface.NetworkInterfaceId, Ipv6Addresses: []string{address}})
	if aws.Code(err) != "InvalidParameterValue" {
		t.Errorf("unassigned twice: %v", err)
	}
	_, err = f.ec2.ModifySubnetAttribute(ctx, &ec2.ModifySubnetAttributeInput{SubnetId: s.Subnet.SubnetId, AssignIpv6AddressOnCreation: &types.AttributeBooleanValue{Value: awssdk.Bool(true)}})
	if err != nil {
		t.Fatal(err)
	}
	again, err := f.ec2.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: s.Subnet.SubnetId})
	if err != nil {
		t.Fatal(err)
	}
	if a := again.NetworkInterface.Ipv6Addresses; len(a) != 1 || *a[0].Ipv6Address != address {
		t.Errorf("given on creation: %+v, want %s", a, address)
	}

	plain, err := f.ec2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("10.9.1.0/24")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.ec2.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: plain.Subnet.SubnetId, Ipv6AddressCount: awssdk.Int32(1)}); aws.Code(err) != "InvalidParameterValue" {
		t.Errorf("in a subnet without IPv6: %v", err)
	}
}

// Property: whatever is asked for and given back, an IPv6 address or prefix belongs to one ENI, single addresses lie in no
// prefix, and what the subnet counts as taken is what ENIs have.
func TestIPv6IsAccountedFor(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := New(Config{Limits: NoRequestLimits(), Now: func() time.Time { return time.Unix(1e9, 0) }})
		defer r.Close()
		must := func(out []element, err error) []element {
			if err != nil {
				t.Fatal(err)
			}
			return out
		}
		vpcID := text(must(direct(r, "CreateVpc", "CidrBlock", "10.0.0.0/16", "AmazonProvidedIpv6CidrBlock", "true")), "vpc", "vpcId")
		subnetID := text(must(direct(r, "CreateSubnet", "VpcId", vpcID, "CidrBlock", "10.0.0.0/24", "Ipv6CidrBlock", "2001:db8::/64")), "subnet", "subnetId")
		anENI := func() *eni {
			all := sortedValues(r.enis)
			if len(all) == 0 {
				return &eni{id: "eni-none"}
			}
			return rapid.SampledFrom(all).Draw(t, "ENI")
		}
		for range rapid.IntRange(1, 40).Draw(t, "steps") {
			count := rapid.SampledFrom([]string{"0", "1", "3"}).Draw(t, "count")
			switch rapid.IntRange(0, 4).Draw(t, "step") {
			case 0:
				must(direct(r, "CreateNetworkInterface", "SubnetId", subnetID, "Ipv6AddressCount", count))
			case 1:
				_, _ = direct(r, "AssignIpv6Addresses", "NetworkInterfaceId", anENI().id, "Ipv6PrefixCount", count)
			case 2:
				_, _ = direct(r, "AssignIpv6Addresses", "NetworkInterfaceId", anENI().id, "Ipv6Addresses.1", "2001:db8::"+count)
			case 3:
				e := anENI()
				kv := []string{"NetworkInterfaceId", e.id}
				if len(e.addrs6) > 0 {
					kv = append(kv, "Ipv6Addresses.1", e.addrs6[0].String())
				}
				if len(e.prefixes6) > 0 {
					kv = append(kv, "Ipv6Prefix.1", e.prefixes6[0].String())
				}
				_, _ = direct(r, "UnassignIpv6Addresses", kv...)
			default:
				_, _ = direct(r, "DeleteNetworkInterface", "NetworkInterfaceId", anENI().id)
			}
			s, addrs, prefixes := r.subnets[subnetID], map[netip.Addr]string{}, map[netip.Prefix]string{}
			for _, e := range r.enis {
				for _, a := range e.addrs6 {
					if addrs[a] != "" || s.v6.used[a] != e.id || !s.v6.block(0).Contains(a) {
						t.Fatalf("%s of %s", a, e.id)
					}
					addrs[a] = e.id
				}
				for _, p := range e.prefixes6 {
					if prefixes[p] != "" || s.v6.blocks[p] != e.id || p.Bits() != 80 || p == s.v6.block(0) || !s.v6.cidr.Contains(p.Addr()) {
						t.Fatalf("%s of %s", p, e.id)
					}
					prefixes[p] = e.id
				}
			}
			if len(addrs) != len(s.v6.used) || len(prefixes) != len(s.v6.blocks) {
				t.Fatalf("ENIs have %v, %v; the subnet counts %v, %v", addrs, prefixes, s.v6.used, s.v6.blocks)
			}
		}
	})
}
