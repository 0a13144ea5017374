package enis

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/ipamd/placement"
)

// Subnets asks EC2 for the subnets of a VPC in one zone: no other can have an ENI of this instance. The list is never nil
// where there is no error.
func (p *Provisioner) Subnets(ctx context.Context, vpcID, zone string) ([]placement.Subnet, error) {
	filter := func(name, v string) types.Filter { return types.Filter{Name: &name, Values: []string{v}} }
	pages := ec2.NewDescribeSubnetsPaginator(p.EC2, &ec2.DescribeSubnetsInput{Filters: []types.Filter{filter("vpc-id", vpcID), filter("availability-zone", zone)}})
	out := []placement.Subnet{}
	for pages.HasMorePages() {
		page, err := pages.NextPage(ctx)
		if err != nil {
			return nil, fmt.Errorf("describe the subnets of %s in %s (ec2:DescribeSubnets): %w", vpcID, zone, err)
		}
		for _, s := range page.Subnets {
			sub := placement.Subnet{ID: value(s.SubnetId), Tags: map[string]string{}}
			if s.AvailableIpAddressCount != nil {
				sub.Free = int(*s.AvailableIpAddressCount)
			}
			for _, t := range s.Tags {
				sub.Tags[value(t.Key)] = value(t.Value)
			}
			out = append(out, sub)
		}
	}
	return out, nil
}
