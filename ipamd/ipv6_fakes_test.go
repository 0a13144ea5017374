package ipamd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/smithy-go"
	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
)

// ipv6World is a node of an IPv6 cluster, as EKS configures it.
func ipv6World(t *testing.T, objects ...client.Object) *world {
	w := newWorld(t, objects...)
	w.env["ENABLE_IPv6"], w.env["ENABLE_IPv4"], w.env["ENABLE_PREFIX_DELEGATION"] = "true", "false", "true"
	return w
}

func (c *cloud) AssignIpv6Addresses(_ context.Context, in *ec2.AssignIpv6AddressesInput, _ ...func(*ec2.Options)) (*ec2.AssignIpv6AddressesOutput, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.assigns++
	switch {
	case c.failed != nil:
		return nil, c.failed
	case c.noPrefix:
		return nil, &smithy.GenericAPIError{Code: "InsufficientCidrBlocks", Message: "no free block"}
	case awssdk.ToInt32(in.Ipv6PrefixCount) != 1 || len(in.Ipv6Addresses)+len(in.Ipv6Prefixes) > 0 || in.Ipv6AddressCount != nil:
		return nil, &smithy.GenericAPIError{Code: "InvalidParameterCombination", Message: "asks for something else than one prefix"}
	}
	e := c.enis[*in.NetworkInterfaceId]
	p := netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:1:%x::/80", c.index(e)<<8+len(e.ipv6)))
	e.ipv6 = append(e.ipv6, p)
	if c.lost > 0 {
		c.lost--
		return nil, errors.New("connection reset by peer")
	}
	return &ec2.AssignIpv6AddressesOutput{AssignedIpv6Prefixes: []string{p.String()}}, nil
}

// showIPv6 is what IMDS has of IPv6. Each ENI has an address of its own, the primary one is the node's.
func (c *cloud) showIPv6(e *cloudENI, i *aws.Interface) {
	i.SubnetIPv6CIDRs, i.VPCIPv6CIDRs = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1::/64")}, []netip.Prefix{netip.MustParsePrefix("2001:db8::/56")}
	if !c.ipv6None {
		i.IPv6Addresses = []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x", c.index(e)))}
	}
	if !c.ipv6Late {
		i.IPv6Prefixes = slices.Clone(e.ipv6)
	}
}

func (c *cloud) set(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
}

// counted is what EC2 was asked for, and what it has.
func (c *cloud) counted() (calls, enis, prefixes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.enis {
		prefixes += len(e.ipv6)
	}
	return c.assigns, len(c.enis), prefixes
}

func ipv6BranchPod(name, uid string, vlan int) *corev1.Pod {
	p := branchPod(name, uid, 0)
	p.Annotations = map[string]string{annotation.Key: fmt.Sprintf(
		`[{"eniId":"eni-b%d","ifAddress":"06:20:0d:3c:5f:%02x","privateIp":"","ipv6Addr":"2001:db8:0:1::b:%x","vlanId":%d,"subnetCidr":"","subnetV6Cidr":"2001:db8:0:1::/64"}]`, vlan, vlan, vlan, vlan)}
	return p
}
