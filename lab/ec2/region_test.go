package ec2

import (
	"context"
	"errors"
	"net/http/httptest"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go/middleware"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/lab/imds"
)

// fixture is a region with a VPC, a subnet, a group and an m5.large with a role, driven through the SDK.
type fixture struct {
	*testing.T
	ctx      context.Context
	region   *Region
	url      string
	ec2      *ec2.Client // the operator's
	iam      *iam.Client
	vpc      string
	subnet   string
	group    string
	instance string
}

func newFixture(t *testing.T, cfg Config) *fixture {
	t.Helper()
	if cfg.Limits == nil {
		cfg.Limits = NoRequestLimits()
	}
	f := &fixture{T: t, ctx: t.Context(), region: New(cfg)}
	srv := httptest.NewServer(f.region.Handler())
	t.Cleanup(func() { srv.Close(); f.region.Close() })
	f.url = srv.URL
	key, secret := f.region.AdminCredentials()
	admin := f.config(imds.Credentials{AccessKeyID: key, SecretAccessKey: secret})
	f.ec2, f.iam = ec2.NewFromConfig(admin), iam.NewFromConfig(admin)

	vpc := must(f.ec2.CreateVpc(f.ctx, &ec2.CreateVpcInput{CidrBlock: ptr("192.168.0.0/16")}))(f)
	f.vpc = *vpc.Vpc.VpcId
	sub := must(f.ec2.CreateSubnet(f.ctx, &ec2.CreateSubnetInput{VpcId: &f.vpc, CidrBlock: ptr("192.168.0.0/19")}))(f)
	f.subnet = *sub.Subnet.SubnetId
	sg := must(f.ec2.CreateSecurityGroup(f.ctx, &ec2.CreateSecurityGroupInput{VpcId: &f.vpc, GroupName: ptr("POD_SG"), Description: ptr("pods")}))(f)
	f.group = *sg.GroupId
	f.role("node", "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy")
	f.instance = f.run("m5.large", "node")
	return f
}

func (f *fixture) config(c imds.Credentials) awssdk.Config {
	return awssdk.Config{
		Region: "us-west-2", BaseEndpoint: &f.url, Retryer: func() awssdk.Retryer { return awssdk.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.Token),
		APIOptions:  []func(*middleware.Stack) error{aws.ReadableBody},
	}
}

const trust = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`

func (f *fixture) role(name string, policies ...string) {
	f.Helper()
	must(f.iam.CreateRole(f.ctx, &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: ptr(trust)}))(f)
	for _, p := range policies {
		must(f.iam.AttachRolePolicy(f.ctx, &iam.AttachRolePolicyInput{RoleName: &name, PolicyArn: &p}))(f)
	}
	must(f.iam.CreateInstanceProfile(f.ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: &name}))(f)
	must(f.iam.AddRoleToInstanceProfile(f.ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: &name, RoleName: &name}))(f)
}

// as gives a client with the role's temporary keys.
func (f *fixture) as(role string) *ec2.Client {
	f.Helper()
	c, ok := f.region.RoleCredentials(role, f.instance)
	if !ok {
		f.Fatalf("no role %s", role)
	}
	return ec2.NewFromConfig(f.config(c))
}

func (f *fixture) run(typ, profile string) string {
	f.Helper()
	out := must(f.ec2.RunInstances(f.ctx, &ec2.RunInstancesInput{
		ImageId: ptr("ami-1"), InstanceType: types.InstanceType(typ), MinCount: ptr(int32(1)), MaxCount: ptr(int32(1)), SubnetId: &f.subnet,
		SecurityGroupIds: []string{f.group}, IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: &profile},
	}))(f)
	return *out.Instances[0].InstanceId
}

func (f *fixture) eni(kind types.NetworkInterfaceCreationType) string {
	f.Helper()
	out := must(f.ec2.CreateNetworkInterface(f.ctx, &ec2.CreateNetworkInterfaceInput{
		SubnetId: &f.subnet, Groups: []string{f.group}, InterfaceType: kind, Description: ptr("test"),
	}))(f)
	return *out.NetworkInterface.NetworkInterfaceId
}

func (f *fixture) attach(eni, instance string, device int32) (string, error) {
	out, err := f.ec2.AttachNetworkInterface(f.ctx, &ec2.AttachNetworkInterfaceInput{
		NetworkInterfaceId: &eni, InstanceId: &instance, DeviceIndex: &device,
	})
	if err != nil {
		return "", err
	}
	return *out.AttachmentId, nil
}

func (f *fixture) trunk() string {
	f.Helper()
	id := f.eni("trunk")
	if _, err := f.attach(id, f.instance, 2); err != nil {
		f.Fatal(err)
	}
	return id
}

func (f *fixture) associate(branch, trunk string, vlan int32) (string, error) {
	out, err := f.ec2.AssociateTrunkInterface(f.ctx, &ec2.AssociateTrunkInterfaceInput{
		BranchInterfaceId: &branch, TrunkInterfaceId: &trunk, VlanId: &vlan,
	})
	if err != nil {
		return "", err
	}
	return *out.InterfaceAssociation.AssociationId, nil
}

func (f *fixture) describe(id string) types.NetworkInterface {
	f.Helper()
	out := must(f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{id}}))(f)
	return out.NetworkInterfaces[0]
}

func (f *fixture) free() int32 {
	f.Helper()
	out := must(f.ec2.DescribeSubnets(f.ctx, &ec2.DescribeSubnetsInput{SubnetIds: []string{f.subnet}}))(f)
	return *out.Subnets[0].AvailableIpAddressCount
}

// must is for set-up calls: must(call())(f) fails the test on an error.
func must[T any](v T, err error) func(*fixture) T {
	return func(f *fixture) T {
		f.Helper()
		if err != nil {
			f.Fatal(err)
		}
		return v
	}
}

func wantCode(t testing.TB, err error, code string) {
	t.Helper()
	if got := aws.Code(err); got != code {
		t.Errorf("code %q, want %q (%v)", got, code, err)
	}
}

func ptr[T any](v T) *T { return &v }

func TestACallerIsNamedBySTS(t *testing.T) {
	f := newFixture(t, Config{})
	c, _ := f.region.RoleCredentials("node", f.instance)
	out := must(sts.NewFromConfig(f.config(c)).GetCallerIdentity(f.ctx, &sts.GetCallerIdentityInput{}))(f)
	if want := "arn:aws:sts::111122223333:assumed-role/node/" + f.instance; *out.Arn != want {
		t.Errorf("arn %s, want %s", *out.Arn, want)
	}
}

func TestBadCredentialsAreRefused(t *testing.T) {
	f := newFixture(t, Config{})
	good, _ := f.region.RoleCredentials("node", f.instance)
	for name, tc := range map[string]struct {
		change func(*imds.Credentials)
	}{
		"unknown key":  {func(c *imds.Credentials) { c.AccessKeyID = "ASIAXXXXXXXXXXXXXXXX" }},
		"wrong secret": {func(c *imds.Credentials) { c.SecretAccessKey += "x" }},
		"no token":     {func(c *imds.Credentials) { c.Token = "" }},
		"wrong token":  {func(c *imds.Credentials) { c.Token = "x" }},
	} {
		t.Run(name, func(t *testing.T) {
			c := good
			tc.change(&c)
			_, err := ec2.NewFromConfig(f.config(c)).DescribeInstances(f.ctx, &ec2.DescribeInstancesInput{})
			wantCode(t, err, "AuthFailure")
			_, err = sts.NewFromConfig(f.config(c)).GetCallerIdentity(f.ctx, &sts.GetCallerIdentityInput{})
			if code := aws.Code(err); code != "InvalidClientTokenId" && code != "SignatureDoesNotMatch" {
				t.Errorf("sts: %v", err)
			}
		})
	}
}

func TestARefusedCallNamesActionAndResource(t *testing.T) {
	f := newFixture(t, Config{})
	eni := f.eni("interface")
	_, err := f.as("node").CreateNetworkInterfacePermission(f.ctx, &ec2.CreateNetworkInterfacePermissionInput{
		NetworkInterfaceId: &eni, AwsAccountId: ptr("111122223333"), Permission: "INSTANCE-ATTACH",
	})
	wantCode(t, err, "UnauthorizedOperation")
	action, resource, ok := aws.Denied(err)
	if want := "arn:aws:ec2:us-west-2:111122223333:network-interface/" + eni; !ok || action != "ec2:CreateNetworkInterfacePermission" || resource != want {
		t.Errorf("denied %q on %q (%v), want it on %q; %v", action, resource, ok, want, err)
	}
	_, err = f.as("node").AssociateTrunkInterface(f.ctx, &ec2.AssociateTrunkInterfaceInput{
		BranchInterfaceId: &eni, TrunkInterfaceId: &eni, VlanId: ptr(int32(1)),
	})
	if action, resource, ok := aws.Denied(err); !ok || action != "ec2:AssociateTrunkInterface" || resource != "" {
		t.Errorf("an action without resources: %q on %q (%v); %v", action, resource, ok, err)
	}
}

func TestPoliciesCanBeAttachedAndDetached(t *testing.T) {
	f := newFixture(t, Config{})
	const arn = "arn:aws:iam::aws:policy/AmazonEKSVPCResourceController"
	f.role("cluster", arn)
	cluster := f.as("cluster")
	mine, other := f.eni("interface"), f.eni("interface")
	must(f.ec2.CreateTags(f.ctx, &ec2.CreateTagsInput{Resources: []string{mine}, Tags: []types.Tag{{Key: ptr("eks:eni:owner"), Value: ptr("eks-vpc-resource-controller")}}}))(f)

	permit := func(eni string) error {
		_, err := cluster.CreateNetworkInterfacePermission(f.ctx, &ec2.CreateNetworkInterfacePermissionInput{
			NetworkInterfaceId: &eni, AwsAccountId: ptr("111122223333"), Permission: "INSTANCE-ATTACH",
		})
		return err
	}
	if err := permit(mine); err != nil {
		t.Errorf("own interface: %v", err)
	}
	wantCode(t, permit(other), "UnauthorizedOperation") // the policy's condition on the owner's tag

	list := must(f.iam.ListAttachedRolePolicies(f.ctx, &iam.ListAttachedRolePoliciesInput{RoleName: ptr("cluster")}))(f)
	if len(list.AttachedPolicies) != 1 || *list.AttachedPolicies[0].PolicyName != "AmazonEKSVPCResourceController" {
		t.Errorf("attached: %+v", list.AttachedPolicies)
	}
	must(f.iam.DetachRolePolicy(f.ctx, &iam.DetachRolePolicyInput{RoleName: ptr("cluster"), PolicyArn: ptr(arn)}))(f)
	wantCode(t, permit(mine), "UnauthorizedOperation")

	must(f.iam.PutRolePolicy(f.ctx, &iam.PutRolePolicyInput{RoleName: ptr("cluster"), PolicyName: ptr("inline"), PolicyDocument: ptr(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:*","Resource":"*"},
		 {"Effect":"Deny","Action":"ec2:Delete*","Resource":"arn:aws:ec2:*:*:network-interface/` + mine + `"}]}`)}))(f)
	if err := permit(mine); err != nil {
		t.Errorf("with the inline policy: %v", err)
	}
	_, err := cluster.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &mine})
	wantCode(t, err, "UnauthorizedOperation")
	if _, err = cluster.DeleteNetworkInterface(f.ctx, &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &other}); err != nil {
		t.Errorf("another interface: %v", err)
	}
}

func TestTagsAtCreationNeedCreateTags(t *testing.T) {
	f := newFixture(t, Config{})
	f.role("untagging", "arn:aws:iam::aws:policy/AmazonEKSVPCResourceController")
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet, TagSpecifications: []types.TagSpecification{{
		ResourceType: "network-interface", Tags: []types.Tag{{Key: ptr("k"), Value: ptr("v")}},
	}}}
	_, err := f.as("untagging").CreateNetworkInterface(f.ctx, in)
	if action, _, _ := aws.Denied(err); action != "ec2:CreateTags" {
		t.Errorf("denied %q, want ec2:CreateTags; %v", action, err)
	}
	if _, err := f.as("node").CreateNetworkInterface(f.ctx, in); err != nil {
		t.Errorf("with AmazonEKS_CNI_Policy: %v", err)
	}
}

func TestDryRunSaysWhatWouldHappen(t *testing.T) {
	f := newFixture(t, Config{})
	free := f.free()
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet, DryRun: ptr(true)}
	_, err := f.as("node").CreateNetworkInterface(f.ctx, in)
	wantCode(t, err, "DryRunOperation")
	_, err = f.as("node").AssociateTrunkInterface(f.ctx, &ec2.AssociateTrunkInterfaceInput{
		BranchInterfaceId: ptr("eni-1"), TrunkInterfaceId: ptr("eni-2"), VlanId: ptr(int32(1)), DryRun: ptr(true),
	})
	wantCode(t, err, "UnauthorizedOperation")
	if f.free() != free {
		t.Error("a dry run took an address")
	}
}

func TestWhatTheLabDoesNotKnowIsRefused(t *testing.T) {
	f := newFixture(t, Config{})
	_, err := f.ec2.CreateNetworkInterface(f.ctx, &ec2.CreateNetworkInterfaceInput{SubnetId: &f.subnet, EnablePrimaryIpv6: ptr(true)})
	wantCode(t, err, "UnknownParameter")
	_, err = f.ec2.DescribeVolumes(f.ctx, &ec2.DescribeVolumesInput{})
	wantCode(t, err, "InvalidAction")
	_, err = f.ec2.DescribeNetworkInterfaces(f.ctx, &ec2.DescribeNetworkInterfacesInput{Filters: []types.Filter{{Name: ptr("nonsense"), Values: []string{"x"}}}})
	wantCode(t, err, "InvalidParameterValue")
	_, err = f.iam.PutRolePolicy(f.ctx, &iam.PutRolePolicyInput{RoleName: ptr("node"), PolicyName: ptr("p"), PolicyDocument: ptr(
		`{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:*","Resource":"*","Condition":{"Bool":{"aws:SecureTransport":"true"}}}]}`)})
	wantCode(t, err, "MalformedPolicyDocument")
	var re interface{ HTTPStatusCode() int }
	if !errors.As(err, &re) || re.HTTPStatusCode() != 400 {
		t.Errorf("status of %v", err)
	}
}
