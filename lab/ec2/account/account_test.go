package account

import (
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

func TestWhatIsMadeCanBeUsedByAnInstanceInItsRole(t *testing.T) {
	region := labec2.New(labec2.Config{Limits: labec2.NoRequestLimits()})
	defer region.Close()
	srv := httptest.NewServer(region.Handler())
	defer srv.Close()
	config := func(key, secret, token string) aws.Config {
		return aws.Config{Region: "us-west-2", BaseEndpoint: &srv.URL, Credentials: credentials.NewStaticCredentialsProvider(key, secret, token)}
	}
	key, secret := region.AdminCredentials()
	a := New(config(key, secret, ""))
	must := func(id string, err error) string {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	ctx := t.Context()
	vpc := must(a.VPC(ctx, "192.168.0.0/16"))
	subnet := must(a.Subnet(ctx, vpc, "192.168.0.0/19", "us-west-2a"))
	group := must(a.Group(ctx, vpc, "nodes", "nodes"))
	must("", a.Role(ctx, "node"))
	must("", a.Attach(ctx, "node", "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"))
	must("", a.Put(ctx, "node", "more", `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["ec2:DescribeVpcs"],"Resource":"*"}]}`))
	out, err := a.EC2.RunInstances(ctx, &ec2.RunInstancesInput{
		InstanceType: "m5.large", SubnetId: &subnet, SecurityGroupIds: []string{group}, MinCount: aws.Int32(1), MaxCount: aws.Int32(1),
		ImageId: aws.String("ami-1"), IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: aws.String("node")},
	})
	if err != nil {
		t.Fatal(err)
	}
	keys, ok := region.RoleCredentials("node", *out.Instances[0].InstanceId)
	if !ok {
		t.Fatal("no role")
	}
	node := New(config(keys.AccessKeyID, keys.SecretAccessKey, keys.Token))
	if _, err := node.EC2.DescribeVpcs(ctx, &ec2.DescribeVpcsInput{VpcIds: []string{vpc}}); err != nil {
		t.Error(err)
	}
	if _, err := node.EC2.DescribeSubnets(ctx, &ec2.DescribeSubnetsInput{SubnetIds: []string{subnet}}); err != nil {
		t.Error(err)
	}
	if _, err := node.VPC(ctx, "10.0.0.0/16"); err == nil {
		t.Error("a node's role makes VPCs")
	}
}
