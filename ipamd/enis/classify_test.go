package enis

import (
	"context"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/placement"
)

// onlyKnows answers a question after ENIs as EC2 does: one that it does not know has it refused whole.
type onlyKnows map[string]types.NetworkInterfaceType

func (k onlyKnows) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	out := &ec2.DescribeNetworkInterfacesOutput{}
	for _, id := range in.NetworkInterfaceIds {
		kind, ok := k[id]
		if !ok {
			return nil, &smithy.GenericAPIError{Code: aws.CodeInterfaceNotFound, Message: id}
		}
		out.NetworkInterfaces = append(out.NetworkInterfaces, types.NetworkInterface{NetworkInterfaceId: &id, InterfaceType: kind})
	}
	return out, nil
}

// TestP49AnENIThatEC2DoesNotKnowHidesNoOther: IMDS still shows one that is gone, or shows one that EC2's descriptions lack yet.
func TestP49AnENIThatEC2DoesNotKnowHidesNoOther(t *testing.T) {
	i := &Inventory{kinds: map[string]placement.Facts{}}
	i.opt.EC2 = onlyKnows{"eni-2": types.NetworkInterfaceTypeInterface, "eni-4": types.NetworkInterfaceTypeTrunk}
	err := i.classify(t.Context(), []aws.Interface{{ENIID: "eni-1"}, {ENIID: "eni-2", DeviceNumber: 1}, {ENIID: "eni-3", DeviceNumber: 2}, {ENIID: "eni-4", DeviceNumber: 3}})
	if err == nil || !strings.Contains(err.Error(), "eni-3") || strings.Contains(err.Error(), "eni-2") {
		t.Errorf("what is not known is not named: %v", err)
	}
	if len(i.kinds) != 2 || i.kinds["eni-2"].Type != "interface" || i.kinds["eni-4"].Type != "trunk" {
		t.Errorf("%+v", i.kinds)
	}
}
