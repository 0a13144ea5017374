package aws

import (
	"context"
	"fmt"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

// InstanceTypeDescriber is the part of the EC2 API that knows instance types; *ec2.Client has it.
type InstanceTypeDescriber interface {
	DescribeInstanceTypes(ctx context.Context, in *ec2.DescribeInstanceTypesInput, opts ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error)
}

// DescribeInstanceType asks EC2 (ec2:DescribeInstanceTypes) for the limits of a type that the table doesn't have. EC2 does
// not tell whether a type can carry a trunk, nor how many branch ENIs: the answer is one that can't.
func DescribeInstanceType(ctx context.Context, api InstanceTypeDescriber, name string) (InstanceType, error) {
	out, err := api.DescribeInstanceTypes(ctx, &ec2.DescribeInstanceTypesInput{InstanceTypes: []types.InstanceType{types.InstanceType(name)}})
	if err != nil {
		return InstanceType{}, fmt.Errorf("ask EC2 for the limits of instance type %s (ec2:DescribeInstanceTypes): %w", name, err)
	}
	for _, i := range out.InstanceTypes {
		if string(i.InstanceType) == name {
			return describedType(i)
		}
	}
	return InstanceType{}, fmt.Errorf("ask EC2 for the limits of instance type %s: it is not in the answer", name)
}

func describedType(i types.InstanceTypeInfo) (InstanceType, error) {
	t := InstanceType{Name: string(i.InstanceType), Hypervisor: string(i.Hypervisor), BareMetal: awssdk.ToBool(i.BareMetal)}
	n := i.NetworkInfo
	if n == nil {
		return t, fmt.Errorf("instance type %s: EC2's answer has no networkInfo", t.Name)
	}
	t.MaxInterfaces, t.IPv4PerInterface = int(awssdk.ToInt32(n.MaximumNetworkInterfaces)), int(awssdk.ToInt32(n.Ipv4AddressesPerInterface))
	t.DefaultNetworkCard = int(awssdk.ToInt32(n.DefaultNetworkCardIndex))
	cards := len(n.NetworkCards)
	if cards == 0 {
		t.InterfacesPerNetworkCard = []int{t.MaxInterfaces}
		cards = 1
	} else {
		t.InterfacesPerNetworkCard = make([]int, cards)
		for _, c := range n.NetworkCards {
			if at := int(awssdk.ToInt32(c.NetworkCardIndex)); at >= 0 && at < cards {
				t.InterfacesPerNetworkCard[at] = int(awssdk.ToInt32(c.MaximumNetworkInterfaces))
			}
		}
	}
	if t.MaxInterfaces < 1 || t.IPv4PerInterface < 1 || t.DefaultNetworkCard < 0 || t.DefaultNetworkCard >= cards || t.InterfacesPerNetworkCard[t.DefaultNetworkCard] < 1 {
		return t, fmt.Errorf("instance type %s: EC2's answer makes no sense: %d interfaces, %d addresses each, cards %v, default card %d", t.Name, t.MaxInterfaces, t.IPv4PerInterface, t.InterfacesPerNetworkCard, t.DefaultNetworkCard)
	}
	return t, nil
}
