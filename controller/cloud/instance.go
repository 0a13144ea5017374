package cloud

import (
	"context"
	"fmt"
	"slices"
	"strings"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
)

// Instance is what the controller needs of an EC2 instance.
type Instance struct {
	ID, Type, AccountID, VPCID, SubnetID, SubnetCIDR string
	// SubnetIPv6CIDR is empty where the subnet has none.
	SubnetIPv6CIDR string
	// Groups are the primary interface's security groups.
	Groups     []string
	Interfaces []Attached
}

// Attached is one of an instance's interfaces.
type Attached struct {
	ENIID, AttachmentID      string
	Trunk                    bool
	DeviceIndex, NetworkCard int
	DeleteOnTermination      bool
}

// Instance describes an instance and its subnet. Error: ErrInstanceGone.
func (c *Client) Instance(ctx context.Context, id string) (*Instance, error) {
	i, err := c.describe(ctx, id)
	if err != nil {
		return nil, err
	}
	subnets, err := c.Subnets(ctx, i.SubnetID)
	if err != nil {
		return nil, err
	}
	i.SubnetCIDR, i.SubnetIPv6CIDR = subnets[i.SubnetID].CIDR, subnets[i.SubnetID].IPv6CIDR
	return i, nil
}

// Subnet is what the controller needs of a subnet. IPv6CIDR is empty where it has none.
type Subnet struct{ ID, CIDR, IPv6CIDR, VPCID, Zone string }

// Subnets describes subnets, all of those that are asked for.
func (c *Client) Subnets(ctx context.Context, ids ...string) (map[string]Subnet, error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	on := strings.Join(ids, ", ")
	out, err := call(ctx, c, "DescribeSubnets", on, c.EC2.DescribeSubnets, &ec2.DescribeSubnetsInput{SubnetIds: ids})
	if err != nil {
		return nil, err
	}
	found := map[string]Subnet{}
	for i := range out.Subnets {
		s := &out.Subnets[i]
		id := awssdk.ToString(s.SubnetId)
		found[id] = Subnet{id, awssdk.ToString(s.CidrBlock), ipv6CIDR(s), awssdk.ToString(s.VpcId), awssdk.ToString(s.AvailabilityZone)}
	}
	for _, id := range ids {
		if _, ok := found[id]; !ok {
			return nil, &Error{Action: "DescribeSubnets", Resource: on, Err: fmt.Errorf("the answer lacks %s", id)}
		}
	}
	return found, nil
}

// MaxStates is how many instances States asks about in one call, the most values that a filter takes.
const MaxStates = 200

// State is what EC2 says of an instance's life.
type State int

// States of instances.
const (
	Unknown    State = iota // it is not in EC2's answer
	Running                 // or about to be
	Stopped                 // or about to be; what its kernel holds goes with it
	Terminated              // EC2 says so
)

// States asks about up to MaxStates instances at once. One that EC2 does not know is Unknown, and no error.
func (c *Client) States(ctx context.Context, ids []string) (map[string]State, error) {
	in := &ec2.DescribeInstancesInput{MaxResults: awssdk.Int32(1000), Filters: []types.Filter{{Name: awssdk.String("instance-id"), Values: ids}}}
	states := map[string]State{}
	for {
		out, err := call(ctx, c, "DescribeInstances", fmt.Sprintf("%d instances", len(ids)), c.EC2.DescribeInstances, in)
		if err != nil {
			return nil, err
		}
		for _, r := range out.Reservations {
			for n := range r.Instances {
				i := &r.Instances[n]
				states[awssdk.ToString(i.InstanceId)] = state(i)
			}
		}
		if awssdk.ToString(out.NextToken) == "" {
			return states, nil
		}
		in.NextToken = out.NextToken
	}
}

func state(i *types.Instance) State {
	if i.State == nil {
		return Running
	}
	switch i.State.Name {
	case types.InstanceStateNameTerminated:
		return Terminated
	case types.InstanceStateNameStopped, types.InstanceStateNameStopping, types.InstanceStateNameShuttingDown:
		return Stopped
	}
	return Running
}

func (c *Client) describe(ctx context.Context, id string) (*Instance, error) {
	out, err := call(ctx, c, "DescribeInstances", id, c.EC2.DescribeInstances, &ec2.DescribeInstancesInput{InstanceIds: []string{id}})
	if aws.IsNotFound(err) {
		return nil, fmt.Errorf("%w: EC2 does not know %s", ErrInstanceGone, id)
	}
	if err != nil {
		return nil, err
	}
	for _, r := range out.Reservations {
		for n := range r.Instances {
			if i := &r.Instances[n]; awssdk.ToString(i.InstanceId) == id {
				return instance(awssdk.ToString(r.OwnerId), i)
			}
		}
	}
	return nil, fmt.Errorf("%w: EC2 does not know %s", ErrInstanceGone, id)
}

func instance(account string, i *types.Instance) (*Instance, error) {
	r := &Instance{
		ID: awssdk.ToString(i.InstanceId), Type: string(i.InstanceType), AccountID: account,
		VPCID: awssdk.ToString(i.VpcId), SubnetID: awssdk.ToString(i.SubnetId),
	}
	if state(i) == Terminated {
		return nil, fmt.Errorf("%w: EC2 says that %s is terminated", ErrInstanceGone, r.ID)
	}
	for _, n := range i.NetworkInterfaces {
		if n.Attachment == nil {
			continue
		}
		a := Attached{
			ENIID: awssdk.ToString(n.NetworkInterfaceId), AttachmentID: awssdk.ToString(n.Attachment.AttachmentId),
			Trunk:       awssdk.ToString(n.InterfaceType) == string(types.NetworkInterfaceTypeTrunk),
			DeviceIndex: int(awssdk.ToInt32(n.Attachment.DeviceIndex)), NetworkCard: int(awssdk.ToInt32(n.Attachment.NetworkCardIndex)),
			DeleteOnTermination: awssdk.ToBool(n.Attachment.DeleteOnTermination),
		}
		r.Interfaces = append(r.Interfaces, a)
		if a.DeviceIndex != 0 || a.NetworkCard != 0 {
			continue
		}
		if r.AccountID == "" {
			r.AccountID = awssdk.ToString(n.OwnerId)
		}
		r.SubnetID = awssdk.ToString(n.SubnetId)
		for _, g := range n.Groups {
			r.Groups = append(r.Groups, awssdk.ToString(g.GroupId))
		}
	}
	return r, nil
}
