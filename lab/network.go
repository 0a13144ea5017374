package lab

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/lab/ec2/account"
)

// The lab's place in the world. Nothing of it is known to the programs under test: they learn region, account and
// addresses from IMDS and EC2, as on AWS.
const (
	Region           = "us-west-2"
	AccountID        = "111122223333"
	AvailabilityZone = "us-west-2a"
	ClusterName      = "lab"

	vpcCIDR          = "192.168.0.0/16"
	nodeSubnetCIDR   = "192.168.0.0/19"
	secondSubnetCIDR = "192.168.32.0/19"

	// internalDomain holds the names that the VPC's DNS knows.
	internalDomain = "lab.internal"
)

var (
	imdsAddr     = netip.MustParseAddr("169.254.169.254")
	dnsAddr      = netip.MustParseAddr("192.168.0.2") // VPC base + 2
	localDNSAddr = netip.MustParseAddr("169.254.169.253")
	// endpointAddr is the VPC interface endpoint for EC2, IAM and STS.
	endpointAddr = netip.MustParseAddr("192.168.0.3")
)

// Roles of the walk-through. The controller's policy is attached by the walk-through itself: a cluster without it is a
// case that users meet.
const (
	ClusterRole  = "eksClusterRole"
	NodeRole     = "eksNodeRole"
	DatabaseRole = "databaseRole"

	ControllerPolicyARN = "arn:aws:iam::aws:policy/AmazonEKSVPCResourceController"
	clusterPolicyARN    = "arn:aws:iam::aws:policy/AmazonEKSClusterPolicy"
	nodePolicyARN       = "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"

	// ipv6NodePolicy is what nodes of an IPv6 cluster have in its place; AWS has no managed policy of the name. It is the one
	// of docs/install.md (a test holds the two together).
	ipv6NodePolicyName = "AmazonEKS_CNI_IPv6_Policy"
	ipv6NodePolicy     = `{"Version": "2012-10-17", "Statement": [
  {"Effect": "Allow", "Resource": "*", "Action": ["ec2:AssignIpv6Addresses", "ec2:DescribeInstances", "ec2:DescribeTags",
    "ec2:DescribeNetworkInterfaces", "ec2:DescribeInstanceTypes"]},
  {"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "arn:aws:ec2:*:*:network-interface/*"}]}`

	// trunkPolicy is what an account that is enabled for the trunk API gives to its controller. No managed policy has
	// these actions: on ordinary accounts only the hosted controller may call them.
	trunkPolicyName = "trunk-api"
	trunkPolicy     = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ec2:AssociateTrunkInterface","ec2:DisassociateTrunkInterface","ec2:DescribeTrunkInterfaceAssociations"],"Resource":"*"}]}`
)

// Network is what the walk-through's first two steps make: the VPC and the groups of the cluster and its nodes.
type Network struct {
	VPCID, NodeSubnetID, SecondSubnetID string
	ClusterGroupID, NodeGroupID         string
}

// awsClients are the operator's: they hold the account's administrator keys.
type awsClients struct{ account.Account }

func newAWSClients(endpoint, keyID, secret string) awsClients {
	return awsClients{account.New(aws.Config{
		Region:       Region,
		BaseEndpoint: aws.String(endpoint),
		Credentials:  credentials.NewStaticCredentialsProvider(keyID, secret, ""),
	})}
}

// makeNetwork makes the VPC, its subnets and the two groups. With ipv6 the subnets have both families.
func (a awsClients) makeNetwork(ctx context.Context, ipv6 bool) (Network, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	var n Network
	err := a.makeSubnets(ctx, &n, ipv6)
	if err != nil {
		return n, err
	}
	if n.ClusterGroupID, err = a.Group(ctx, n.VPCID, "eks-cluster-sg", "Control plane"); err != nil {
		return n, err
	}
	if n.NodeGroupID, err = a.Group(ctx, n.VPCID, "eks-node-sg", "Node group"); err != nil {
		return n, err
	}
	// The rules that EKS's own templates give to the two: the API server to nodes and back, nodes among themselves.
	for _, r := range []struct {
		group, from string
		protocol    string
		port        int32
	}{
		{n.ClusterGroupID, n.NodeGroupID, "tcp", apiPort},
		{n.ClusterGroupID, n.ClusterGroupID, "-1", -1},
		{n.NodeGroupID, n.ClusterGroupID, "tcp", 10250},
		{n.NodeGroupID, n.NodeGroupID, "-1", -1},
	} {
		if err := a.allow(ctx, r.group, r.protocol, r.port, r.from); err != nil {
			return n, err
		}
	}
	return n, nil
}

func (a awsClients) makeSubnets(ctx context.Context, n *Network, dualStack bool) (err error) {
	var ipv6 netip.Prefix
	if dualStack {
		n.VPCID, ipv6, err = a.DualStackVPC(ctx, vpcCIDR)
	} else {
		n.VPCID, err = a.VPC(ctx, vpcCIDR)
	}
	if err != nil {
		return err
	}
	for i, s := range []struct {
		cidr string
		id   *string
	}{{nodeSubnetCIDR, &n.NodeSubnetID}, {secondSubnetCIDR, &n.SecondSubnetID}} {
		if dualStack {
			*s.id, err = a.DualStackSubnet(ctx, n.VPCID, s.cidr, subnetIPv6(ipv6, i), AvailabilityZone)
		} else {
			*s.id, err = a.Subnet(ctx, n.VPCID, s.cidr, AvailabilityZone)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// subnetIPv6 is the n-th /64 of a VPC's /56.
func subnetIPv6(vpc netip.Prefix, n int) netip.Prefix {
	b := vpc.Masked().Addr().As16()
	b[7] |= byte(n)
	return netip.PrefixFrom(netip.AddrFrom16(b), 64)
}

// allow lets protocol and port into group from a peer: a group id, or a CIDR.
func (a awsClients) allow(ctx context.Context, group, protocol string, port int32, peer string) error {
	p := ec2types.IpPermission{IpProtocol: aws.String(protocol), FromPort: aws.Int32(port), ToPort: aws.Int32(port)}
	if strings.HasPrefix(peer, "sg-") {
		p.UserIdGroupPairs = []ec2types.UserIdGroupPair{{GroupId: aws.String(peer)}}
	} else {
		p.IpRanges = []ec2types.IpRange{{CidrIp: aws.String(peer)}}
	}
	_, err := a.EC2.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{
		GroupId: aws.String(group), IpPermissions: []ec2types.IpPermission{p},
	})
	if err != nil {
		return fmt.Errorf("let %s %d into %s from %s: %w", protocol, port, group, peer, err)
	}
	return nil
}

// makeRoles makes the roles and an instance profile of the same name for each. With ipv6 the nodes' is an IPv6 cluster's.
func (a awsClients) makeRoles(ctx context.Context, ipv6 bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for _, role := range []string{ClusterRole, NodeRole, DatabaseRole} {
		if err := a.Role(ctx, role); err != nil {
			return err
		}
	}
	if err := a.Attach(ctx, ClusterRole, clusterPolicyARN); err != nil {
		return err
	}
	err := a.permitNodes(ctx, ipv6)
	if err != nil {
		return err
	}
	return a.Put(ctx, ClusterRole, trunkPolicyName, trunkPolicy)
}

func (a awsClients) permitNodes(ctx context.Context, ipv6 bool) error {
	if ipv6 {
		return a.Put(ctx, NodeRole, ipv6NodePolicyName, ipv6NodePolicy)
	}
	return a.Attach(ctx, NodeRole, nodePolicyARN)
}

// Machine is an EC2 instance of the lab.
type Machine struct {
	ID, Name, Type string
	Address        netip.Addr // the primary ENI's
	IPv6           netip.Addr // the primary ENI's; not valid where its subnet has no IPv6
	ENIID          string     // the primary ENI
	GroupIDs       []string
}

// clusterAddress is the machine's address of the cluster's family.
func (m Machine) clusterAddress() netip.Addr {
	if m.IPv6.IsValid() {
		return m.IPv6
	}
	return m.Address
}

// Hostname is the private DNS name that AWS gives to the address.
func (m Machine) Hostname() string {
	return "ip-" + strings.ReplaceAll(m.Address.String(), ".", "-") + "." + Region + ".compute.internal"
}

// launch runs one instance and waits until EC2 says that it runs.
func (a awsClients) launch(ctx context.Context, name, instanceType, role, subnet string, groups ...string) (Machine, error) {
	ctx, cancel := context.WithTimeout(ctx, 4*time.Minute)
	defer cancel()
	out, err := a.EC2.RunInstances(ctx, &ec2.RunInstancesInput{
		ImageId: aws.String("ami-0b1abc0000000lab1"), InstanceType: ec2types.InstanceType(instanceType),
		MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		SubnetId: aws.String(subnet), SecurityGroupIds: groups,
		IamInstanceProfile: &ec2types.IamInstanceProfileSpecification{Name: aws.String(role)},
		TagSpecifications: []ec2types.TagSpecification{{
			ResourceType: ec2types.ResourceTypeInstance,
			Tags:         []ec2types.Tag{{Key: aws.String("Name"), Value: aws.String(name)}},
		}},
	}, func(o *ec2.Options) { o.Retryer = aws.NopRetryer{} }) // a VM's boot is no reason to launch a second one
	if err != nil {
		return Machine{}, fmt.Errorf("launch %s instance %q: %w", instanceType, name, err)
	}
	if len(out.Instances) != 1 || len(out.Instances[0].NetworkInterfaces) == 0 {
		return Machine{}, fmt.Errorf("launch %s instance %q: EC2 answered with %d instances", instanceType, name, len(out.Instances))
	}
	i := out.Instances[0]
	addr, err := netip.ParseAddr(aws.ToString(i.PrivateIpAddress))
	if err != nil {
		return Machine{}, fmt.Errorf("launch %s instance %q: private address: %w", instanceType, name, err)
	}
	m := Machine{
		ID: aws.ToString(i.InstanceId), Name: name, Type: instanceType, Address: addr,
		ENIID: aws.ToString(i.NetworkInterfaces[0].NetworkInterfaceId), GroupIDs: groups,
	}
	for _, six := range i.NetworkInterfaces[0].Ipv6Addresses {
		if m.IPv6, err = netip.ParseAddr(aws.ToString(six.Ipv6Address)); err != nil {
			return Machine{}, fmt.Errorf("launch %s instance %q: IPv6 address: %w", instanceType, name, err)
		}
	}
	return m, a.awaitRunning(ctx, m)
}

// awaitRunning waits until EC2 says that an instance runs.
func (a awsClients) awaitRunning(ctx context.Context, m Machine) error {
	for {
		out, err := a.EC2.DescribeInstances(ctx, &ec2.DescribeInstancesInput{InstanceIds: []string{m.ID}})
		if err != nil {
			return fmt.Errorf("wait for instance %s (%s): %w", m.ID, m.Name, err)
		}
		state := ec2types.InstanceStateNamePending
		if len(out.Reservations) == 1 && len(out.Reservations[0].Instances) == 1 {
			i := out.Reservations[0].Instances[0]
			state = i.State.Name
			if state == ec2types.InstanceStateNameTerminated && i.StateReason != nil {
				return fmt.Errorf("wait for instance %s (%s): it ended: %s", m.ID, m.Name, aws.ToString(i.StateReason.Message))
			}
		}
		switch state {
		case ec2types.InstanceStateNameRunning:
			return nil
		case ec2types.InstanceStateNamePending:
		default:
			return fmt.Errorf("wait for instance %s (%s): it is %s", m.ID, m.Name, state)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for instance %s (%s) to run: %w", m.ID, m.Name, context.Cause(ctx))
		case <-time.After(300 * time.Millisecond):
		}
	}
}

// Terminate ends an instance by the API, as its owner would.
func (l *Lab) Terminate(ctx context.Context, m Machine) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if _, err := l.aws.EC2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{m.ID}}); err != nil {
		return fmt.Errorf("terminate instance %s (%s): %w", m.ID, m.Name, err)
	}
	return nil
}
