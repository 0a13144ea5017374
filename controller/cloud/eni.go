package cloud

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/aws"
)

// ENI is a network interface that the controller made.
type ENI struct {
	ID, MAC, PrivateIP, SubnetID, Description string
	// IPv6 is its IPv6 address; empty where it has none.
	IPv6 string
	// Groups are its security groups' ids.
	Groups []string
	// Claim, InstanceID, PodUID, TrunkENIID (of a branch) and CreatedAt are what the controller wrote into the tags; zero
	// where a tag is missing.
	Claim, InstanceID, PodUID, TrunkENIID string
	CreatedAt                             time.Time
	// InUse: it is attached to an instance.
	InUse bool
}

// Branch is a wish for a branch ENI. The same wish again, claim included, gives the same ENI.
type Branch struct {
	InstanceID, SubnetID, TrunkENIID string
	VLANID                           int32
	Claim, PodUID                    string
	Groups                           []string
	// At is when the wish was written down.
	At time.Time
	// IPv6 asks for an IPv6 address beside the IPv4 one; the subnet has to have them.
	IPv6 bool
	Tags map[string]string
}

// CreateTrunk makes a trunk ENI with the primary interface's subnet and groups. claim makes it idempotent.
func (c *Client) CreateTrunk(ctx context.Context, i *Instance, claim string, at time.Time, tags map[string]string) (*ENI, error) {
	return c.create(ctx, "the trunk of instance "+i.ID+" in subnet "+i.SubnetID, &ec2.CreateNetworkInterfaceInput{
		ClientToken: &claim, SubnetId: &i.SubnetID, Groups: i.Groups, Description: awssdk.String(TrunkDescription),
		InterfaceType: types.NetworkInterfaceCreationTypeTrunk,
		TagSpecifications: c.tags(tags, map[string]string{
			tagInstanceID: i.ID, tagClaim: claim, tagCreatedAt: at.UTC().Format(time.RFC3339),
		}),
	})
}

// CreateBranch makes a branch ENI.
func (c *Client) CreateBranch(ctx context.Context, b Branch) (*ENI, error) {
	return c.create(ctx, "a branch of trunk "+b.TrunkENIID+" in subnet "+b.SubnetID, &ec2.CreateNetworkInterfaceInput{
		ClientToken: &b.Claim, SubnetId: &b.SubnetID, Groups: b.Groups, Description: awssdk.String(BranchDescription), Ipv6AddressCount: b.ipv6Addresses(),
		TagSpecifications: c.tags(b.Tags, map[string]string{
			tagVLAN: strconv.Itoa(int(b.VLANID)), tagTrunk: b.TrunkENIID, tagPodUID: b.PodUID,
			tagInstanceID: b.InstanceID, tagClaim: b.Claim, tagCreatedAt: b.At.UTC().Format(time.RFC3339),
		}),
	})
}

func (c *Client) create(ctx context.Context, what string, in *ec2.CreateNetworkInterfaceInput) (*ENI, error) {
	out, err := call(ctx, c, "CreateNetworkInterface", what, c.EC2.CreateNetworkInterface, in)
	if err != nil {
		return nil, err
	}
	if out.NetworkInterface == nil || awssdk.ToString(out.NetworkInterface.NetworkInterfaceId) == "" {
		return nil, &Error{Action: "CreateNetworkInterface", Resource: what, Err: errors.New("the answer holds no network interface")}
	}
	return eni(out.NetworkInterface), nil
}

// Permit lets the account attach the ENI to instances, which association with a trunk needs too.
func (c *Client) Permit(ctx context.Context, eniID, account string) error {
	_, err := call(ctx, c, "CreateNetworkInterfacePermission", eniID, c.EC2.CreateNetworkInterfacePermission, &ec2.CreateNetworkInterfacePermissionInput{
		NetworkInterfaceId: &eniID, AwsAccountId: &account, Permission: types.InterfacePermissionTypeInstanceAttach,
	})
	if aws.Code(err) == "InvalidPermission.Duplicate" {
		return nil
	}
	if c.refusedAsGone(ctx, eniID, err) {
		return fmt.Errorf("%w: %s: %w", ErrENIGone, eniID, err)
	}
	return gone(err, eniID)
}

// Attach puts an ENI on an instance.
func (c *Client) Attach(ctx context.Context, eniID, instanceID string, deviceIndex, networkCard int) (attachmentID string, err error) {
	in := &ec2.AttachNetworkInterfaceInput{NetworkInterfaceId: &eniID, InstanceId: &instanceID, DeviceIndex: awssdk.Int32(int32(deviceIndex))}
	if networkCard != 0 {
		in.NetworkCardIndex = awssdk.Int32(int32(networkCard))
	}
	out, err := call(ctx, c, "AttachNetworkInterface", fmt.Sprintf("%s to %s at device index %d", eniID, instanceID, deviceIndex), c.EC2.AttachNetworkInterface, in)
	if err != nil {
		return "", err
	}
	return awssdk.ToString(out.AttachmentId), nil
}

// DeleteOnTermination lets EC2 delete an attached ENI with its instance.
func (c *Client) DeleteOnTermination(ctx context.Context, eniID, attachmentID string) error {
	_, err := call(ctx, c, "ModifyNetworkInterfaceAttribute", eniID, c.EC2.ModifyNetworkInterfaceAttribute, &ec2.ModifyNetworkInterfaceAttributeInput{
		NetworkInterfaceId: &eniID,
		Attachment:         &types.NetworkInterfaceAttachmentChanges{AttachmentId: &attachmentID, DeleteOnTermination: awssdk.Bool(true)},
	})
	return err
}

// Delete deletes an ENI; one that EC2 does not know is deleted already.
func (c *Client) Delete(ctx context.Context, eniID string) error {
	_, err := call(ctx, c, "DeleteNetworkInterface", eniID, c.EC2.DeleteNetworkInterface, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eniID})
	if aws.IsNotFound(err) || c.refusedAsGone(ctx, eniID, err) {
		return nil
	}
	return err
}

// refusedAsGone says whether a call was refused because the ENI is gone: a policy that allows calls by the ENI's tags, as
// iam-policy.json does, has no tags to go by then, and EC2 may answer with a refusal in the place of "not found".
func (c *Client) refusedAsGone(ctx context.Context, eniID string, err error) bool {
	if !aws.IsDenied(err) {
		return false
	}
	there, lerr := c.Exists(ctx, eniID)
	return lerr == nil && !there
}

// Exists says whether EC2 knows the ENI.
func (c *Client) Exists(ctx context.Context, eniID string) (bool, error) {
	out, err := call(ctx, c, "DescribeNetworkInterfaces", eniID, c.EC2.DescribeNetworkInterfaces, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	if aws.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return len(out.NetworkInterfaces) > 0, nil
}

// ByClaim finds the ENI that an attempt made; nil where there is none.
func (c *Client) ByClaim(ctx context.Context, claim string) (*ENI, error) {
	all, err := c.list(ctx, "claim "+claim, types.Filter{Name: awssdk.String("tag:" + tagClaim), Values: []string{claim}})
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// ByID finds an ENI that the controller made; nil where EC2 knows none of that id, or it is somebody else's.
func (c *Client) ByID(ctx context.Context, eniID string) (*ENI, error) {
	all, err := c.list(ctx, eniID, types.Filter{Name: awssdk.String("network-interface-id"), Values: []string{eniID}})
	if err != nil || len(all) == 0 {
		return nil, err
	}
	return &all[0], nil
}

// OfInstance lists the ENIs that the controller made for an instance: trunks and branches.
func (c *Client) OfInstance(ctx context.Context, instanceID string) ([]ENI, error) {
	return c.list(ctx, instanceID, types.Filter{Name: awssdk.String("tag:" + tagInstanceID), Values: []string{instanceID}})
}

// OfCluster lists all ENIs that the controller made for the cluster.
func (c *Client) OfCluster(ctx context.Context) ([]ENI, error) {
	return c.list(ctx, "cluster "+c.ClusterName)
}

// list pages through the controller's ENIs.
func (c *Client) list(ctx context.Context, what string, more ...types.Filter) ([]ENI, error) {
	in := &ec2.DescribeNetworkInterfacesInput{MaxResults: awssdk.Int32(500), Filters: append(more,
		types.Filter{Name: awssdk.String("tag:" + tagOwner), Values: []string{owner}},
		types.Filter{Name: awssdk.String("tag:" + tagCluster + c.ClusterName), Values: []string{"owned"}},
	)}
	var all []ENI
	for {
		out, err := call(ctx, c, "DescribeNetworkInterfaces", what, c.EC2.DescribeNetworkInterfaces, in)
		if err != nil {
			return nil, err
		}
		for i := range out.NetworkInterfaces {
			all = append(all, *eni(&out.NetworkInterfaces[i]))
		}
		if awssdk.ToString(out.NextToken) == "" {
			return all, nil
		}
		in.NextToken = out.NextToken
	}
}

func eni(n *types.NetworkInterface) *ENI {
	e := &ENI{
		ID: awssdk.ToString(n.NetworkInterfaceId), MAC: awssdk.ToString(n.MacAddress), PrivateIP: awssdk.ToString(n.PrivateIpAddress), IPv6: ipv6Address(n),
		SubnetID: awssdk.ToString(n.SubnetId), Description: awssdk.ToString(n.Description),
		InUse: n.Attachment != nil && awssdk.ToString(n.Attachment.InstanceId) != "",
	}
	for _, g := range n.Groups {
		e.Groups = append(e.Groups, awssdk.ToString(g.GroupId))
	}
	for _, t := range n.TagSet {
		switch awssdk.ToString(t.Key) {
		case tagPodUID:
			e.PodUID = awssdk.ToString(t.Value)
		case tagTrunk:
			e.TrunkENIID = awssdk.ToString(t.Value)
		case tagClaim:
			e.Claim = awssdk.ToString(t.Value)
		case tagInstanceID:
			e.InstanceID = awssdk.ToString(t.Value)
		case tagCreatedAt:
			e.CreatedAt, _ = time.Parse(time.RFC3339, awssdk.ToString(t.Value)) // unreadable is as good as missing
		}
	}
	return e
}

func gone(err error, eniID string) error {
	if aws.Code(err) == aws.CodeInterfaceNotFound {
		return fmt.Errorf("%w: %s: %w", ErrENIGone, eniID, err)
	}
	return err
}

func apiMessage(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorMessage()
	}
	return err.Error()
}

func sorted(tags map[string]string) []types.Tag {
	r := make([]types.Tag, 0, len(tags))
	for k, v := range tags {
		r = append(r, types.Tag{Key: awssdk.String(k), Value: awssdk.String(v)})
	}
	slices.SortFunc(r, func(a, b types.Tag) int { return cmp.Compare(*a.Key, *b.Key) })
	return r
}
