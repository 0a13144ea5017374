package ipamd

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"pgregory.net/rapid"

	"github.com/branchline-cni/branchline/aws"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	labimds "github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/vpc"
	"github.com/branchline-cni/branchline/test/truth"
)

const (
	atEC2  = "http://ec2.lab"
	atIMDS = "http://imds.lab"
)

// labCloud is the lab's EC2 and IMDS, behind the clients that the agent has.
type labCloud struct {
	s        *stage
	region   *labec2.Region
	metadata labimds.Faults
	admin    *ec2.Client
	id       string
	subnet   string
	group    string
	latency  time.Duration
	answers  answers
	ipv6     bool

	mu     sync.Mutex
	asked  map[string]int // attempts of the agent's, by API, or by key of an interface in IMDS
	undo   func()         // of late descriptions
	cached map[string]truth.ENI
	dirty  atomic.Bool
}

func newLab(s *stage) provider { return newLabOf(s, false) }

// newLabIPv6 has the instance in a dual-stack subnet, with the role that nodes of IPv6 clusters have.
func newLabIPv6(s *stage) provider { return newLabOf(s, true) }

func newLabOf(s *stage, ipv6 bool) provider {
	l := &labCloud{s: s, latency: 50 * time.Millisecond, ipv6: ipv6, asked: map[string]int{}}
	l.dirty.Store(true)
	l.region = labec2.New(labec2.Config{
		Limits: labec2.NoRequestLimits(), History: 5 * time.Minute, Seed: "truth",
		OnChange: func(*vpc.Topology) { l.dirty.Store(true); go s.linksChanged() },
	})
	key, secret := l.region.AdminCredentials()
	cfg := awssdk.Config{
		Region: "us-west-2", BaseEndpoint: awssdk.String(atEC2), HTTPClient: &http.Client{Transport: direct{l.region.Handler()}},
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, ""),
	}
	l.admin = ec2.NewFromConfig(cfg)
	if err := l.build(iam.NewFromConfig(cfg)); err != nil {
		s.t.Fatalf("%v", err)
	}
	return l
}

// build makes the VPC and the instance, with the role that nodes have.
func (l *labCloud) build(roles *iam.Client) error {
	ctx := context.Background()
	v, err := l.admin.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("192.168.0.0/16"), AmazonProvidedIpv6CidrBlock: &l.ipv6})
	if err != nil {
		return err
	}
	half := &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("192.168.0.0/24"), AvailabilityZone: awssdk.String(zone)}
	if l.ipv6 {
		half.Ipv6CidrBlock = awssdk.String(netip.PrefixFrom(netip.MustParsePrefix(*v.Vpc.Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlock).Addr(), 64).String())
	}
	sub, err := l.admin.CreateSubnet(ctx, half)
	if err != nil {
		return err
	}
	g, err := l.admin.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: v.Vpc.VpcId, GroupName: awssdk.String("node"), Description: awssdk.String("node")})
	if err != nil {
		return err
	}
	l.subnet, l.group = *sub.Subnet.SubnetId, *g.GroupId
	name, trust := awssdk.String("node"), awssdk.String(`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`)
	_, err1 := roles.CreateRole(ctx, &iam.CreateRoleInput{RoleName: name, AssumeRolePolicyDocument: trust})
	var err2 error
	if l.ipv6 {
		_, err2 = roles.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: name, PolicyName: awssdk.String("AmazonEKS_CNI_IPv6_Policy"), PolicyDocument: awssdk.String(
			`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Resource":"*","Action":["ec2:AssignIpv6Addresses","ec2:DescribeNetworkInterfaces","ec2:DescribeInstanceTypes"]}]}`)})
	} else {
		_, err2 = roles.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: name, PolicyArn: awssdk.String("arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy")})
	}
	_, err3 := roles.CreateInstanceProfile(ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: name})
	_, err4 := roles.AddRoleToInstanceProfile(ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: name, RoleName: name})
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return err
	}
	one := awssdk.Int32(1)
	launch := &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-1"), InstanceType: "m5.large", MinCount: one, MaxCount: one, SubnetId: &l.subnet,
		SecurityGroupIds: []string{l.group}, IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: name},
	}
	if l.ipv6 {
		launch.Ipv6AddressCount = one
	}
	out, err := l.admin.RunInstances(ctx, launch)
	if err == nil {
		l.id = *out.Instances[0].InstanceId
	}
	return err
}

func (l *labCloud) identity() aws.Identity {
	return aws.Identity{InstanceID: l.id, InstanceType: "m5.large", Region: "us-west-2", AvailabilityZone: zone}
}

// enis asks as the operator, whom no fault hits.
func (l *labCloud) enis() map[string]truth.ENI {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.dirty.Swap(false) {
		return l.cached
	}
	out, err := l.admin.DescribeNetworkInterfaces(context.Background(), &ec2.DescribeNetworkInterfacesInput{})
	if err != nil {
		panic(err)
	}
	l.cached = map[string]truth.ENI{}
	for _, n := range out.NetworkInterfaces {
		e := truth.ENI{ID: *n.NetworkInterfaceId, MAC: *n.MacAddress, Description: awssdk.ToString(n.Description), Device: -1}
		for _, a := range n.PrivateIpAddresses {
			e.Addresses = append(e.Addresses, netip.MustParseAddr(*a.PrivateIpAddress))
		}
		for _, p := range n.Ipv4Prefixes {
			e.Prefixes = append(e.Prefixes, netip.MustParsePrefix(*p.Ipv4Prefix))
		}
		for _, p := range n.Ipv6Prefixes {
			e.IPv6Prefixes = append(e.IPv6Prefixes, netip.MustParsePrefix(*p.Ipv6Prefix))
		}
		if n.Attachment != nil {
			e.Device = int(*n.Attachment.DeviceIndex)
		}
		l.cached[e.ID] = e
	}
	return l.cached
}

func (l *labCloud) lateMetadata(eni string, by time.Duration) {
	l.region.LateMetadata(l.id, eni, by)
}

func (l *labCloud) lateDescribes(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.undo != nil {
		l.undo()
		l.undo = nil
	}
	if by > 0 {
		l.undo = l.region.Faults().Add(labec2.Fault{API: "DescribeNetworkInterfaces", Role: "node", Times: -1, Late: by})
	}
}

func (l *labCloud) fail(f flaw) {
	if f.api == "IMDS" {
		l.metadata.Add(labimds.Fault{Path: "/latest/meta-data/network", Times: f.times, Status: http.StatusInternalServerError})
		return
	}
	fault := labec2.Fault{API: f.api, Role: "node", Times: f.times}
	switch f.kind {
	case refused:
		fault.Code = f.code
	case lost:
		fault.Drop = true
	case repeated:
		fault.Repeat = true
	}
	l.region.Faults().Add(fault)
}

func (l *labCloud) calm() {
	l.lateDescribes(0)
	l.region.Faults().Clear()
	l.region.MetadataInTime(l.id)
	l.metadata.Clear()
}

func (l *labCloud) bring() error {
	ctx := context.Background()
	e, err := l.admin.CreateNetworkInterface(ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: &l.subnet, Groups: []string{l.group}, SecondaryPrivateIpAddressCount: awssdk.Int32(2), Description: awssdk.String("somebody's")})
	if err != nil {
		return err
	}
	id := e.NetworkInterface.NetworkInterfaceId
	for device := range int32(truth.MaxENIs) {
		if _, err = l.admin.AttachNetworkInterface(ctx, &ec2.AttachNetworkInterfaceInput{NetworkInterfaceId: id, InstanceId: &l.id, DeviceIndex: awssdk.Int32(device + 1)}); err == nil {
			return nil
		}
	}
	_, derr := l.admin.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: id})
	return errors.Join(err, derr)
}

func (l *labCloud) take(eni string) error {
	ctx := context.Background()
	out, err := l.admin.DescribeNetworkInterfaces(ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eni}})
	if err != nil {
		return err
	}
	if _, err = l.admin.DetachNetworkInterface(ctx, &ec2.DetachNetworkInterfaceInput{AttachmentId: out.NetworkInterfaces[0].Attachment.AttachmentId}); err != nil {
		return err
	}
	_, err = l.admin.DeleteNetworkInterface(ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &eni})
	return err
}

func (l *labCloud) assign(eni string) error {
	_, err := l.admin.AssignPrivateIpAddresses(context.Background(), &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: &eni, SecondaryPrivateIpAddressCount: awssdk.Int32(1)})
	return err
}

func (l *labCloud) unassign(eni string, unit netip.Prefix) (err error) {
	if unit.Addr().Is6() {
		_, err = l.admin.UnassignIpv6Addresses(context.Background(), &ec2.UnassignIpv6AddressesInput{NetworkInterfaceId: &eni, Ipv6Prefixes: []string{unit.String()}})
	} else {
		_, err = l.admin.UnassignPrivateIpAddresses(context.Background(), &ec2.UnassignPrivateIpAddressesInput{NetworkInterfaceId: &eni, PrivateIpAddresses: []string{unit.Addr().String()}})
	}
	return err
}

// withoutAWS keeps what the machine has of AWS's settings out of a test.
func withoutAWS(t *testing.T) {
	t.Helper()
	for _, name := range []string{"AWS_CA_BUNDLE", "AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"} {
		t.Setenv(name, "")
	}
	for _, name := range []string{"AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"} {
		t.Setenv(name, "/nowhere")
	}
}

// TestP5P50TheAgentNeverLiesAboutAddressesOfTheLab plays the same on the lab's EC2 and IMDS, through the clients that ship:
// with their retries, a role's permissions, EC2's own rules for attachments, and the lab's lateness.
func TestP5P50TheAgentNeverLiesAboutAddressesOfTheLab(t *testing.T) {
	withoutAWS(t)
	c := &scene{t: t, cloud: newLab, most: 12}
	rapid.Check(t, func(rt *rapid.T) {
		if rapid.IntRange(0, 5).Draw(rt, "of six cases") == 0 { // one is played: each takes six times what one on the plain maps does
			c.play(rt)
		}
	})
}
