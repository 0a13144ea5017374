package cloud

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

// trunk is an EC2 with one trunk, that answers each association alike.
type trunk struct {
	EC2
	answer    error
	on        map[int32]string // branch ENIs by VLAN id
	listings  int
	unbounded bool
	described error // what EC2 answers to who asks for the branch ENI; nil: it is there
}

func (e *trunk) DescribeNetworkInterfaces(_ context.Context, in *ec2.DescribeNetworkInterfacesInput, _ ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error) {
	if e.described != nil {
		return nil, e.described
	}
	out := &ec2.DescribeNetworkInterfacesOutput{}
	for _, id := range in.NetworkInterfaceIds {
		out.NetworkInterfaces = append(out.NetworkInterfaces, types.NetworkInterface{NetworkInterfaceId: &id})
	}
	return out, nil
}

func (e *trunk) AssociateTrunkInterface(context.Context, *ec2.AssociateTrunkInterfaceInput, ...func(*ec2.Options)) (*ec2.AssociateTrunkInterfaceOutput, error) {
	return nil, e.answer
}

func (e *trunk) DescribeTrunkInterfaceAssociations(_ context.Context, in *ec2.DescribeTrunkInterfaceAssociationsInput, _ ...func(*ec2.Options)) (*ec2.DescribeTrunkInterfaceAssociationsOutput, error) {
	e.listings++
	e.unbounded = e.unbounded || len(in.Filters) != 1 || len(in.Filters[0].Values) != 1 || in.Filters[0].Values[0] != "eni-trunk"
	out := &ec2.DescribeTrunkInterfaceAssociationsOutput{}
	for vlan, eni := range e.on {
		out.InterfaceAssociations = append(out.InterfaceAssociations, types.TrunkInterfaceAssociation{
			AssociationId: awssdk.String("of-" + eni), BranchInterfaceId: &eni, TrunkInterfaceId: awssdk.String("eni-trunk"), VlanId: &vlan,
		})
	}
	return out, nil
}

func refusal(status int, code string) error {
	return &smithyhttp.ResponseError{
		Response: &smithyhttp.Response{Response: &http.Response{StatusCode: status}}, Err: &smithy.GenericAPIError{Code: code},
	}
}

// Associations are looked up only where the refusal can mean that EC2 has what was asked for, or another in its place: a
// look-up after each failure would come in thousands where EC2 is in trouble already.
func TestAFailedAssociationIsLookedUpOnlyWhereThatCanTellMore(t *testing.T) {
	mine, others := map[int32]string{7: "eni-b", 8: "eni-c"}, map[int32]string{7: "eni-c"}
	for _, tt := range []struct {
		name     string
		answer   error
		on       map[int32]string
		id       string
		want     any
		listings int
		branch   error
	}{
		{"it is there already", refusal(400, "InvalidNetworkInterface.InUse"), mine, "of-eni-b", nil, 1, nil},
		{"another is there", refusal(400, "InvalidVlanId.Duplicate"), others, "", &VLANTakenError{}, 1, nil},
		{"refused for another reason", refusal(400, "InvalidParameterValue"), nil, "", nil, 1, nil},
		{"EC2 failed", refusal(500, "InternalError"), mine, "", nil, 0, nil},
		{"EC2 is not available", refusal(503, "Unavailable"), mine, "", nil, 0, nil},
		{"throttled", refusal(503, "RequestLimitExceeded"), mine, "", nil, 0, nil},
		{"throttled as a client's fault", refusal(400, "Throttling"), mine, "", nil, 0, nil},
		{"denied", refusal(403, "UnauthorizedOperation"), mine, "", nil, 0, nil},
		{"the branch ENI is gone", refusal(400, "InvalidNetworkInterfaceID.NotFound"), others, "", ErrENIGone, 0, refusal(400, "InvalidNetworkInterfaceID.NotFound")},
		{"the trunk is gone", refusal(400, "InvalidNetworkInterfaceID.NotFound"), nil, "", nil, 0, nil},
		{"one of them is gone", refusal(400, "InvalidNetworkInterfaceID.NotFound"), nil, "", nil, 0, refusal(503, "RequestLimitExceeded")},
		{"no answer", fmt.Errorf("connection reset"), mine, "", nil, 0, nil},
	} {
		e := &trunk{answer: tt.answer, on: tt.on, described: tt.branch}
		id, err := (&Client{EC2: e, ClusterName: "demo"}).Associate(t.Context(), "eni-b", "eni-trunk", 7, "claim")
		if id != tt.id || (err == nil) != (tt.id != "") || e.listings != tt.listings || e.unbounded {
			t.Errorf("%s: %q, %v after %d listings (of more than the trunk: %t)", tt.name, id, err, e.listings, e.unbounded)
		}
		var taken *VLANTakenError
		if _, ok := tt.want.(*VLANTakenError); ok != errors.As(err, &taken) {
			t.Errorf("%s: %v", tt.name, err)
		}
		if errors.Is(err, ErrENIGone) != (tt.want == ErrENIGone) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}
