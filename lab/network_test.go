package lab

import (
	"net/http/httptest"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

func TestTheOperatorMakesTheNetworkAndTheRoles(t *testing.T) {
	region := labec2.New(labec2.Config{Region: Region, Limits: labec2.NoRequestLimits()})
	defer region.Close()
	srv := httptest.NewServer(region.Handler())
	defer srv.Close()
	key, secret := region.AdminCredentials()
	a := newAWSClients(srv.URL, key, secret)
	if err := a.makeRoles(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := a.makeNetwork(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	subnets, err := a.EC2.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{SubnetIds: []string{n.NodeSubnetID, n.SecondSubnetID}})
	if err != nil || len(subnets.Subnets) != 2 || *subnets.Subnets[0].AvailabilityZone != AvailabilityZone {
		t.Errorf("%+v, %v", subnets, err)
	}
	groups, err := a.EC2.DescribeSecurityGroups(t.Context(), &ec2.DescribeSecurityGroupsInput{GroupIds: []string{n.ClusterGroupID, n.NodeGroupID}})
	if err != nil || len(groups.SecurityGroups) != 2 {
		t.Fatalf("%+v, %v", groups, err)
	}
	for _, g := range groups.SecurityGroups {
		if len(g.IpPermissions) != 2 {
			t.Errorf("%s lets in %+v", *g.GroupName, g.IpPermissions)
		}
	}
	for role, want := range map[string]int{ClusterRole: 1, NodeRole: 1, DatabaseRole: 0} {
		out, err := a.IAM.ListAttachedRolePolicies(t.Context(), &iam.ListAttachedRolePoliciesInput{RoleName: &role})
		if err != nil || len(out.AttachedPolicies) != want {
			t.Errorf("%s: %+v, %v", role, out, err)
		}
	}
}
