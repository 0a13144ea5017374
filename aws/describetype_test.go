package aws

import (
	"context"
	"errors"
	"slices"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

type knownTypes []types.InstanceTypeInfo

func (k knownTypes) DescribeInstanceTypes(context.Context, *ec2.DescribeInstanceTypesInput, ...func(*ec2.Options)) (*ec2.DescribeInstanceTypesOutput, error) {
	if k == nil {
		return nil, errors.New("connection refused")
	}
	return &ec2.DescribeInstanceTypesOutput{InstanceTypes: k}, nil
}

func described(interfaces, addresses, defaultCard int32, cards ...int32) types.InstanceTypeInfo {
	n := &types.NetworkInfo{MaximumNetworkInterfaces: &interfaces, Ipv4AddressesPerInterface: &addresses, DefaultNetworkCardIndex: &defaultCard}
	for i, most := range cards {
		n.NetworkCards = append(n.NetworkCards, types.NetworkCardInfo{NetworkCardIndex: awssdk.Int32(int32(i)), MaximumNetworkInterfaces: &most})
	}
	return types.InstanceTypeInfo{InstanceType: "x9.huge", Hypervisor: "nitro", NetworkInfo: n}
}

func TestP23ATypeThatTheTableLacksIsDescribedByEC2(t *testing.T) {
	for name, tt := range map[string]struct {
		api   knownTypes
		cards []int // nil: an error
	}{
		"one card":                   {knownTypes{described(8, 30, 0, 8)}, []int{8}},
		"no cards listed":            {knownTypes{described(8, 30, 0)}, []int{8}},
		"several cards":              {knownTypes{described(8, 30, 1, 4, 4)}, []int{4, 4}},
		"EC2 is away":                {nil, nil},
		"EC2 answers of another":     {knownTypes{{InstanceType: "x9.small"}}, nil},
		"no network in the answer":   {knownTypes{{InstanceType: "x9.huge"}}, nil},
		"no interfaces":              {knownTypes{described(0, 30, 0, 8)}, nil},
		"no addresses":               {knownTypes{described(8, 0, 0, 8)}, nil},
		"a default card that is not": {knownTypes{described(8, 30, 2, 4, 4)}, nil},
		"a negative default card":    {knownTypes{described(8, 30, -1, 4, 4)}, nil},
	} {
		got, err := DescribeInstanceType(t.Context(), tt.api, "x9.huge")
		if tt.cards == nil {
			if err == nil {
				t.Errorf("%s: %+v, no error", name, got)
			}
			continue
		}
		if err != nil || got.TrunkCompatible || got.Name != "x9.huge" || got.MaxInterfaces != 8 || got.IPv4PerInterface != 30 || !slices.Equal(got.InterfacesPerNetworkCard, tt.cards) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}
