package cloud

import (
	"context"
	"errors"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
)

// refusing is an EC2 that refuses what is done to network interfaces; it knows those in there.
type refusing struct {
	EC2
	there map[string]bool
	blind bool // it refuses to describe, too
}

var denied = &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation."}

func (r *refusing) DeleteNetworkInterface(context.Context, *ec2.DeleteNetworkInterfaceInput, ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error) {
	return nil, denied
}

func (r *refusing) CreateNetworkInterfacePermission(context.Context, *ec2.CreateNetworkInterfacePermissionInput, ...func(*ec2.Options)) (*ec2.CreateNetworkInterfacePermissionOutput, error) {
	return nil, denied
}

func (r *refusing) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	switch {
	case r.blind:
		return nil, denied
	case !r.there[in.NetworkInterfaceIds[0]]:
		return nil, &smithy.GenericAPIError{Code: "InvalidNetworkInterfaceID.NotFound"}
	}
	return &ec2.DescribeNetworkInterfacesOutput{NetworkInterfaces: []types.NetworkInterface{{NetworkInterfaceId: &in.NetworkInterfaceIds[0]}}}, nil
}

// A policy by tags refuses calls on an interface that is gone: clean-up must end all the same.
func TestARefusalOnAnENIThatIsGoneIsNoRefusal(t *testing.T) {
	e := &refusing{there: map[string]bool{"eni-there": true}}
	c := &Client{EC2: e, ClusterName: "c"}
	if err := c.Delete(t.Context(), "eni-gone"); err != nil {
		t.Errorf("delete an ENI that is gone: %v", err)
	}
	if err := c.Permit(t.Context(), "eni-gone", "111122223333"); !errors.Is(err, ErrENIGone) {
		t.Errorf("permit an ENI that is gone: %v, want ErrENIGone", err)
	}
	for name, err := range map[string]error{"delete": c.Delete(t.Context(), "eni-there"), "permit": c.Permit(t.Context(), "eni-there", "111122223333")} {
		if !errors.Is(err, denied) || errors.Is(err, ErrENIGone) {
			t.Errorf("%s an ENI that is there: %v, want the refusal", name, err)
		}
	}
	e.blind = true
	if err := c.Delete(t.Context(), "eni-gone"); !errors.Is(err, denied) {
		t.Errorf("delete where nobody can look: %v, want the refusal", err)
	}
}
