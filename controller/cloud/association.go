package cloud

import (
	"context"
	"fmt"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/branchline-cni/branchline/aws"
)

// Association is a branch ENI on a VLAN id of a trunk.
type Association struct {
	ID, BranchENIID, TrunkENIID string
	VLANID                      int32
}

// VLANTakenError: EC2 has another branch ENI on this VLAN id.
type VLANTakenError struct{ By Association }

func (e *VLANTakenError) Error() string {
	return fmt.Sprintf("VLAN id %d of trunk %s is taken by %s (%s)", e.By.VLANID, e.By.TrunkENIID, e.By.BranchENIID, e.By.ID)
}

// Associate puts a branch ENI on a VLAN id of a trunk; one that is there already is a success. Errors: VLANTakenError,
// ErrENIGone. What EC2 refuses is looked up rather than guessed from codes: they do not tell a duplicate VLAN id apart.
func (c *Client) Associate(ctx context.Context, branch, trunk string, vlan int32, claim string) (associationID string, err error) {
	what := fmt.Sprintf("branch ENI %s with trunk ENI %s on VLAN id %d", branch, trunk, vlan)
	out, err := call(ctx, c, "AssociateTrunkInterface", what, c.EC2.AssociateTrunkInterface, &ec2.AssociateTrunkInterfaceInput{
		BranchInterfaceId: &branch, TrunkInterfaceId: &trunk, VlanId: awssdk.Int32(vlan), ClientToken: &claim,
	})
	if err == nil {
		if out.InterfaceAssociation == nil {
			return "", &Error{Action: "AssociateTrunkInterface", Resource: what, Err: fmt.Errorf("the answer holds no association")}
		}
		return awssdk.ToString(out.InterfaceAssociation.AssociationId), nil
	}
	if aws.Code(err) == "" || aws.IsDenied(err) || aws.IsThrottled(err) {
		return "", err
	}
	all, lookErr := c.Associations(ctx)
	if lookErr != nil {
		return "", err
	}
	for _, a := range all {
		if a.BranchENIID == branch && a.TrunkENIID == trunk && a.VLANID == vlan {
			return a.ID, nil
		}
	}
	for _, a := range all {
		if a.TrunkENIID == trunk && a.VLANID == vlan {
			return "", &VLANTakenError{By: a}
		}
	}
	return "", gone(err, branch)
}

// Associations lists every association of the account in the region: EC2 has no filter by trunk.
func (c *Client) Associations(ctx context.Context) ([]Association, error) {
	in := &ec2.DescribeTrunkInterfaceAssociationsInput{MaxResults: awssdk.Int32(255)}
	var all []Association
	for {
		out, err := call(ctx, c, "DescribeTrunkInterfaceAssociations", "all trunks", c.EC2.DescribeTrunkInterfaceAssociations, in)
		if err != nil {
			return nil, err
		}
		for _, a := range out.InterfaceAssociations {
			all = append(all, Association{
				ID: awssdk.ToString(a.AssociationId), BranchENIID: awssdk.ToString(a.BranchInterfaceId),
				TrunkENIID: awssdk.ToString(a.TrunkInterfaceId), VLANID: awssdk.ToInt32(a.VlanId),
			})
		}
		if awssdk.ToString(out.NextToken) == "" {
			return all, nil
		}
		in.NextToken = out.NextToken
	}
}

// Disassociate takes a branch ENI off its trunk; an association that EC2 does not know is gone already.
func (c *Client) Disassociate(ctx context.Context, associationID string) error {
	_, err := call(ctx, c, "DisassociateTrunkInterface", associationID, c.EC2.DisassociateTrunkInterface, &ec2.DisassociateTrunkInterfaceInput{AssociationId: &associationID})
	if aws.IsNotFound(err) {
		return nil
	}
	return err
}

// Remove takes a branch ENI off its trunk and deletes it. Without an association id it is looked up.
func (c *Client) Remove(ctx context.Context, eniID, associationID string) error {
	if associationID == "" {
		all, err := c.Associations(ctx)
		if err != nil {
			return err
		}
		for _, a := range all {
			if a.BranchENIID == eniID {
				associationID = a.ID
			}
		}
	}
	if associationID != "" {
		if err := c.Disassociate(ctx, associationID); err != nil {
			return err
		}
	}
	return c.Delete(ctx, eniID)
}
