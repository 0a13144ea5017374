// Package cloud says the controller's wishes in EC2's terms: which call, with which tags, description and idempotency
// token, under which deadline; and what a refusal means for the people who have to act on it.
//
// It keeps no state and takes no decision: what is made for whom is written in the ledger before it is called.
package cloud

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/aws"
)

// What the outside world knows the controller's ENIs by.
const (
	TrunkDescription  = "aws-k8s-trunk-eni"
	BranchDescription = "aws-k8s-branch-eni"

	tagOwner      = "eks:eni:owner"
	owner         = "eks-vpc-resource-controller"
	tagCluster    = "kubernetes.io/cluster/"
	tagVLAN       = "vpcresources.k8s.aws/vlan-id"
	tagTrunk      = "vpcresources.k8s.aws/trunk-eni-id"
	tagCreatedAt  = "node.k8s.amazonaws.com/createdAt"
	tagInstanceID = "branchline.dev/instance-id"
	tagClaim      = "branchline.dev/claim"
	tagPodUID     = "branchline.dev/pod-uid"
)

// DefaultTimeout bounds one call, the SDK's own retries included.
const DefaultTimeout = 30 * time.Second

// EC2 is what the controller calls; *ec2.Client has it.
type EC2 interface {
	AssociateTrunkInterface(context.Context, *ec2.AssociateTrunkInterfaceInput, ...func(*ec2.Options)) (*ec2.AssociateTrunkInterfaceOutput, error)
	AttachNetworkInterface(context.Context, *ec2.AttachNetworkInterfaceInput, ...func(*ec2.Options)) (*ec2.AttachNetworkInterfaceOutput, error)
	CreateNetworkInterface(context.Context, *ec2.CreateNetworkInterfaceInput, ...func(*ec2.Options)) (*ec2.CreateNetworkInterfaceOutput, error)
	CreateNetworkInterfacePermission(context.Context, *ec2.CreateNetworkInterfacePermissionInput, ...func(*ec2.Options)) (*ec2.CreateNetworkInterfacePermissionOutput, error)
	DeleteNetworkInterface(context.Context, *ec2.DeleteNetworkInterfaceInput, ...func(*ec2.Options)) (*ec2.DeleteNetworkInterfaceOutput, error)
	DescribeInstances(context.Context, *ec2.DescribeInstancesInput, ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error)
	DescribeNetworkInterfaces(context.Context, *ec2.DescribeNetworkInterfacesInput, ...func(*ec2.Options)) (*ec2.DescribeNetworkInterfacesOutput, error)
	DescribeSubnets(context.Context, *ec2.DescribeSubnetsInput, ...func(*ec2.Options)) (*ec2.DescribeSubnetsOutput, error)
	DescribeTrunkInterfaceAssociations(context.Context, *ec2.DescribeTrunkInterfaceAssociationsInput, ...func(*ec2.Options)) (*ec2.DescribeTrunkInterfaceAssociationsOutput, error)
	DisassociateTrunkInterface(context.Context, *ec2.DisassociateTrunkInterfaceInput, ...func(*ec2.Options)) (*ec2.DisassociateTrunkInterfaceOutput, error)
	ModifyNetworkInterfaceAttribute(context.Context, *ec2.ModifyNetworkInterfaceAttributeInput, ...func(*ec2.Options)) (*ec2.ModifyNetworkInterfaceAttributeOutput, error)
}

// Client makes the controller's calls. All fields but Timeout are required.
type Client struct {
	EC2         EC2
	ClusterName string
	// Timeout bounds one call; zero means DefaultTimeout.
	Timeout time.Duration
}

// Error is a call that failed: which one, on what.
type Error struct {
	Action   string // the API action, for example CreateNetworkInterface
	Resource string // what it was called on or for
	Err      error
}

func (e *Error) Error() string { return fmt.Sprintf("%s for %s: %v", e.Action, e.Resource, e.Err) }
func (e *Error) Unwrap() error { return e.Err }

// ErrInstanceGone: EC2 does not know the instance, which may be a passing error, or it is terminated. States tells which.
var ErrInstanceGone = errors.New("the instance is gone")

// ErrENIGone: EC2 does not know the network interface.
var ErrENIGone = errors.New("the network interface is gone")

// call runs one call under the deadline and says what failed. A free function, because methods have no type parameters.
func call[I, O any](ctx context.Context, c *Client, action, resource string, f func(context.Context, *I, ...func(*ec2.Options)) (*O, error), in *I) (*O, error) {
	timeout := c.Timeout
	if timeout == 0 {
		timeout = DefaultTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	out, err := f(ctx, in)
	if err != nil {
		return nil, &Error{Action: action, Resource: resource, Err: err}
	}
	return out, nil
}

// mostTags is how many tags of others are set: EC2 takes 50 on a resource, and some are the controller's own.
const mostTags = 40

// UnusableTags are the keys of those tags that EC2 would not set, in order: with one of them it makes no ENI at all. What is
// left is set.
func UnusableTags(tags map[string]string) (keys []string) {
	n := 0
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		if n == mostTags || k == "" || strings.HasPrefix(strings.ToLower(k), "aws:") || utf8.RuneCountInString(k) > 128 || utf8.RuneCountInString(tags[k]) > 256 {
			keys = append(keys, k)
		} else {
			n++
		}
	}
	return keys
}

func (c *Client) tags(extra map[string]string, own map[string]string) []types.TagSpecification {
	all := map[string]string{}
	maps.Copy(all, extra)
	for _, k := range UnusableTags(extra) {
		delete(all, k)
	}
	maps.Copy(all, own)
	all[tagOwner] = owner
	all[tagCluster+c.ClusterName] = "owned"
	return []types.TagSpecification{{ResourceType: types.ResourceTypeNetworkInterface, Tags: sorted(all)}}
}

// Explain says, for an event, what a failed call means and what to do. The texts hold no request ids, so that repeats
// are counted as one event.
func Explain(err error) (reason, message string) {
	action, on := "the call", "EC2"
	var e *Error
	if errors.As(err, &e) {
		action, on = "ec2:"+e.Action, e.Resource
	}
	code := aws.Code(err)
	switch {
	case aws.IsDenied(err):
		resource := on
		if a, r, ok := aws.Denied(err); ok {
			action = a
			if r != "" {
				resource = r + " (for " + on + ")"
			}
		}
		return "UnauthorizedOperation", fmt.Sprintf("the controller's IAM role may not call %s on %s: allow it there: config/vpc-controller/iam-policy.json has all that the controller calls (AmazonEKSVPCResourceController lacks the trunk, tag and describe actions)", action, resource)
	case aws.IsThrottled(err):
		return "Throttled", fmt.Sprintf("EC2 throttles %s (for %s): it is tried again with back-off; ask AWS for a higher request rate if this stays", action, on)
	case code == aws.CodeSubnetFull:
		return "InsufficientFreeAddressesInSubnet", fmt.Sprintf("%s for %s: the subnet has no free address: free some, or use nodes in a larger subnet; it is tried again", action, on)
	case code == "InvalidGroup.NotFound", code == "InvalidGroupId.Malformed", code == "InvalidSecurityGroupID.NotFound", code == "InvalidSecurityGroupId.NotFound":
		return "SecurityGroupNotFound", fmt.Sprintf("%s for %s: %s: correct groupIds in the SecurityGroupPolicy; the groups must exist in the cluster's VPC", action, on, apiMessage(err))
	case code == "SecurityGroupsPerInterfaceLimitExceeded":
		return "TooManySecurityGroups", fmt.Sprintf("%s for %s: the policies give more security groups than EC2 allows on one network interface (5 unless raised): use fewer, or raise the quota", action, on)
	case code == "NetworkInterfaceLimitExceeded":
		return "NetworkInterfaceLimitExceeded", fmt.Sprintf("%s for %s: the account's quota of network interfaces in this region is used up: raise it, or delete unused ones", action, on)
	case code == aws.CodeAttachmentLimitExceeded:
		return "AttachmentLimitExceeded", fmt.Sprintf("%s for %s: the instance has as many network interfaces as its type allows, so none is left for the trunk: detach one, or replace the node; it is tried again", action, on)
	case errors.Is(err, context.DeadlineExceeded):
		return "EC2Timeout", fmt.Sprintf("%s for %s: no answer in time; it is tried again", action, on)
	case code != "":
		return "EC2Error", fmt.Sprintf("%s for %s: %s: %s; it is tried again", action, on, code, apiMessage(err))
	}
	return "EC2Error", fmt.Sprintf("%s for %s failed before EC2 answered; it is tried again, the controller's log has the error", action, on)
}
