package lab

import (
	"net/http/httptest"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/iam"

	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

// operator has a region of its own.
func operator(t *testing.T) awsClients {
	region := labec2.New(labec2.Config{Region: Region, Limits: labec2.NoRequestLimits()})
	t.Cleanup(region.Close)
	srv := httptest.NewServer(region.Handler())
	t.Cleanup(srv.Close)
	key, secret := region.AdminCredentials()
	return newAWSClients(srv.URL, key, secret)
}

func TestTheOperatorMakesTheNetworkAndTheRoles(t *testing.T) {
	a := operator(t)
	if err := a.makeRoles(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	n, err := a.makeNetwork(t.Context(), false)
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

func TestInAnIPv6ClusterEachInstanceAndENIHasBothFamilies(t *testing.T) {
	a := operator(t)
	if err := a.makeRoles(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	n, err := a.makeNetwork(t.Context(), true)
	if err != nil {
		t.Fatal(err)
	}
	node, err := a.launch(t.Context(), "node", nodeType, NodeRole, n.NodeSubnetID, n.NodeGroupID)
	if err != nil {
		t.Fatal(err)
	}
	other, err := a.launch(t.Context(), "other", nodeType, NodeRole, n.SecondSubnetID, n.NodeGroupID)
	if err != nil {
		t.Fatal(err)
	}
	if !node.IPv6.IsValid() || node.clusterAddress() != node.IPv6 || node.Address == node.IPv6 {
		t.Errorf("%+v", node)
	}
	if netip.PrefixFrom(node.IPv6, 64).Masked() == netip.PrefixFrom(other.IPv6, 64).Masked() {
		t.Errorf("both subnets have the range of %s", node.IPv6)
	}
	out, err := a.EC2.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: &n.NodeSubnetID})
	if err != nil || len(out.NetworkInterface.Ipv6Addresses) != 1 {
		t.Errorf("an ENI of the nodes' subnet: %+v, %v", out, err)
	}
	role := NodeRole
	attached, err := a.IAM.ListAttachedRolePolicies(t.Context(), &iam.ListAttachedRolePoliciesInput{RoleName: &role})
	if err != nil || len(attached.AttachedPolicies) != 0 {
		t.Errorf("the nodes' role has %+v, %v", attached, err)
	}
	inline, err := a.IAM.ListRolePolicies(t.Context(), &iam.ListRolePoliciesInput{RoleName: &role})
	if err != nil || len(inline.PolicyNames) != 1 || inline.PolicyNames[0] != ipv6NodePolicyName {
		t.Errorf("the nodes' role has %+v, %v", inline, err)
	}
}

func TestTheNodesPolicyOfAnIPv6ClusterIsTheDocumentedOne(t *testing.T) {
	guide, err := os.ReadFile("../docs/install.md")
	if err != nil {
		t.Fatal(err)
	}
	words := func(s string) string { return strings.Join(strings.Fields(s), " ") }
	if !strings.Contains(words(string(guide)), words(ipv6NodePolicy)) {
		t.Errorf("docs/install.md does not have\n%s", ipv6NodePolicy)
	}
}
