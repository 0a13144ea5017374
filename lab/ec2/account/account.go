// Package account is an operator's hand in a region: it makes what must be there before anybody can work, VPCs, subnets,
// security groups and roles, by the official SDK and with whatever keys its clients have. The lab and the tests that need a
// region of their own share it.
//
// What a lab's network looks like is decided by who calls it; instances, ENIs and trunks are none of its business.
package account

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	awsclient "github.com/branchline-cni/branchline/aws"
)

// Account makes things with the clients' keys.
type Account struct {
	EC2 *ec2.Client
	IAM *iam.Client
}

// New makes both clients.
func New(cfg aws.Config) Account {
	cfg.APIOptions = append(slices.Clip(cfg.APIOptions), awsclient.ReadableBody)
	return Account{EC2: ec2.NewFromConfig(cfg), IAM: iam.NewFromConfig(cfg)}
}

// VPC makes a VPC.
func (a Account) VPC(ctx context.Context, cidr string) (id string, err error) {
	out, err := a.EC2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: &cidr})
	if err != nil {
		return "", fmt.Errorf("create VPC %s: %w", cidr, err)
	}
	return aws.ToString(out.Vpc.VpcId), nil
}

// DualStackVPC makes a VPC with an IPv6 range of Amazon's, too.
func (a Account) DualStackVPC(ctx context.Context, cidr string) (id string, ipv6 netip.Prefix, err error) {
	out, err := a.EC2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: &cidr, AmazonProvidedIpv6CidrBlock: aws.Bool(true)})
	if err != nil {
		return "", ipv6, fmt.Errorf("create VPC %s with an IPv6 range: %w", cidr, err)
	}
	id = aws.ToString(out.Vpc.VpcId)
	ranges := out.Vpc.Ipv6CidrBlockAssociationSet
	if len(ranges) != 1 {
		return id, ipv6, fmt.Errorf("create VPC %s with an IPv6 range: EC2 answered with %d of them", cidr, len(ranges))
	}
	if ipv6, err = netip.ParsePrefix(aws.ToString(ranges[0].Ipv6CidrBlock)); err != nil {
		return id, ipv6, fmt.Errorf("read the IPv6 range of VPC %s: %w", id, err)
	}
	return id, ipv6, nil
}

// DualStackSubnet makes a subnet with an IPv6 range, too (a /64 of the VPC's), of which each ENI gets an address.
func (a Account) DualStackSubnet(ctx context.Context, vpcID, cidr string, ipv6 netip.Prefix, zone string) (id string, err error) {
	if id, err = a.subnet(ctx, &ec2.CreateSubnetInput{VpcId: &vpcID, CidrBlock: &cidr, Ipv6CidrBlock: aws.String(ipv6.String())}, zone); err != nil {
		return "", err
	}
	if _, err := a.EC2.ModifySubnetAttribute(ctx, &ec2.ModifySubnetAttributeInput{
		SubnetId: &id, AssignIpv6AddressOnCreation: &types.AttributeBooleanValue{Value: aws.Bool(true)},
	}); err != nil {
		return id, fmt.Errorf("have the ENIs of subnet %s get IPv6 addresses: %w", id, err)
	}
	return id, nil
}

// Subnet makes a subnet; without a zone EC2 chooses one.
func (a Account) Subnet(ctx context.Context, vpcID, cidr, zone string) (id string, err error) {
	return a.subnet(ctx, &ec2.CreateSubnetInput{VpcId: &vpcID, CidrBlock: &cidr}, zone)
}

func (a Account) subnet(ctx context.Context, in *ec2.CreateSubnetInput, zone string) (id string, err error) {
	if zone != "" {
		in.AvailabilityZone = &zone
	}
	out, err := a.EC2.CreateSubnet(ctx, in)
	if err != nil {
		return "", fmt.Errorf("create subnet %s in %s: %w", aws.ToString(in.CidrBlock), aws.ToString(in.VpcId), err)
	}
	return aws.ToString(out.Subnet.SubnetId), nil
}

// Group makes a security group.
func (a Account) Group(ctx context.Context, vpcID, name, description string) (id string, err error) {
	out, err := a.EC2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: &vpcID, GroupName: &name, Description: &description})
	if err != nil {
		return "", fmt.Errorf("create security group %s in %s: %w", name, vpcID, err)
	}
	return aws.ToString(out.GroupId), nil
}

// trust lets EC2 instances take a role.
const trust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`

// Role makes a role that instances can take, without any permission, and an instance profile of the same name.
func (a Account) Role(ctx context.Context, name string) error {
	document := trust
	if _, err := a.IAM.CreateRole(ctx, &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &document}); err != nil {
		return fmt.Errorf("create role %s: %w", name, err)
	}
	if _, err := a.IAM.CreateInstanceProfile(ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: &name}); err != nil {
		return fmt.Errorf("create instance profile %s: %w", name, err)
	}
	if _, err := a.IAM.AddRoleToInstanceProfile(ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: &name, RoleName: &name}); err != nil {
		return fmt.Errorf("put role %s into its instance profile: %w", name, err)
	}
	return nil
}

// Attach gives a role a managed policy.
func (a Account) Attach(ctx context.Context, role, policyARN string) error {
	if _, err := a.IAM.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: &role, PolicyArn: &policyARN}); err != nil {
		return fmt.Errorf("attach %s to %s: %w", policyARN, role, err)
	}
	return nil
}

// Put gives a role an inline policy, in the place of the one of that name.
func (a Account) Put(ctx context.Context, role, name, document string) error {
	if _, err := a.IAM.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &role, PolicyName: &name, PolicyDocument: &document}); err != nil {
		return fmt.Errorf("put policy %s into %s: %w", name, role, err)
	}
	return nil
}
