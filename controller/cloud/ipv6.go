package cloud

import (
	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// ipv6CIDR is the subnet's; empty where none is associated with it.
func ipv6CIDR(s *types.Subnet) string {
	for _, a := range s.Ipv6CidrBlockAssociationSet {
		if a.Ipv6CidrBlockState != nil && a.Ipv6CidrBlockState.State == types.SubnetCidrBlockStateCodeAssociated {
			return awssdk.ToString(a.Ipv6CidrBlock)
		}
	}
	return ""
}

// ipv6Address is the ENI's first; empty where it has none.
func ipv6Address(n *types.NetworkInterface) string {
	for _, a := range n.Ipv6Addresses {
		return awssdk.ToString(a.Ipv6Address)
	}
	return ""
}

// ipv6Addresses is how many a branch ENI is asked to have: its pod needs one in an IPv6 cluster, and nobody tells the
// controller which kind of cluster this is before the first pod needs it.
func (b Branch) ipv6Addresses() *int32 {
	if !b.IPv6 {
		return nil
	}
	return awssdk.Int32(1)
}
