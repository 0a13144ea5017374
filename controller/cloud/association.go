package cloud

import (
	"context"
	"errors"
	"fmt"
	"slices"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

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
// ErrENIGone, of the branch ENI. A refusal may mean that it is there already, or that another is: that is looked up rather than guessed from
// codes, which do not tell a duplicate VLAN id apart. Without a clear refusal it is not: the claim makes the next attempt give
// the same answer, and a look-up would only add to what EC2 suffers from.
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
	if aws.IsNotFound(err) {
		// The trunk has the same code: it goes with its instance, and a branch ENI made anew would not help.
		if there, lookErr := c.Exists(ctx, branch); lookErr != nil || there {
			return "", err
		}
		return "", gone(err, branch)
	}
	if !aws.IsRefused(err) || aws.IsDenied(err) || aws.IsThrottled(err) {
		return "", err
	}
	all, lookErr := c.Associations(ctx, trunk)
	if lookErr != nil {
		return "", err
	}
	for _, a := range all {
		if a.BranchENIID == branch && a.VLANID == vlan {
			return a.ID, nil
		}
	}
	for _, a := range all {
		if a.VLANID == vlan {
			return "", &VLANTakenError{By: a}
		}
	}
	return "", err
}

// filterTrunk is not in the EC2 API reference; AWS's own controller for EKS asks by it.
const filterTrunk = "trunk-interface-association.trunk-interface-id"

// maxFilterValues is how many values EC2 takes for one filter.
const maxFilterValues = 200

// Associations lists what is associated with a trunk. What is not in the list is not on the trunk, so that no trunk is an
// error, not an empty list.
func (c *Client) Associations(ctx context.Context, trunk string) ([]Association, error) {
	if trunk == "" {
		return nil, errors.New("DescribeTrunkInterfaceAssociations: no trunk is named")
	}
	return c.associations(ctx, trunk)
}

func (c *Client) associations(ctx context.Context, trunks ...string) ([]Association, error) {
	what := trunks[0]
	if len(trunks) > 1 {
		what = fmt.Sprintf("%d trunks", len(trunks))
	}
	in := &ec2.DescribeTrunkInterfaceAssociationsInput{
		MaxResults: awssdk.Int32(255), Filters: []types.Filter{{Name: awssdk.String(filterTrunk), Values: trunks}},
	}
	var all []Association
	for {
		out, err := call(ctx, c, "DescribeTrunkInterfaceAssociations", what, c.EC2.DescribeTrunkInterfaceAssociations, in)
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

// AssociationIDs finds the associations of the trunks by branch ENI, for Remove. Empty names are passed over.
func (c *Client) AssociationIDs(ctx context.Context, trunks []string) (map[string]string, error) {
	trunks = slices.DeleteFunc(slices.Compact(slices.Sorted(slices.Values(trunks))), func(id string) bool { return id == "" })
	ids := map[string]string{}
	for some := range slices.Chunk(trunks, maxFilterValues) {
		all, err := c.associations(ctx, some...)
		if err != nil {
			return nil, err
		}
		for _, a := range all {
			ids[a.BranchENIID] = a.ID
		}
	}
	return ids, nil
}

// Disassociate takes a branch ENI off its trunk; an association that EC2 does not know is gone already.
func (c *Client) Disassociate(ctx context.Context, associationID string) error {
	_, err := call(ctx, c, "DisassociateTrunkInterface", associationID, c.EC2.DisassociateTrunkInterface, &ec2.DisassociateTrunkInterfaceInput{AssociationId: &associationID})
	if aws.IsNotFound(err) {
		return nil
	}
	return err
}

// Remove takes a branch ENI off its trunk, where it has an association (AssociationIDs knows), and deletes it.
func (c *Client) Remove(ctx context.Context, eniID, associationID string) error {
	if associationID != "" {
		if err := c.Disassociate(ctx, associationID); err != nil {
			return err
		}
	}
	return c.Delete(ctx, eniID)
}
