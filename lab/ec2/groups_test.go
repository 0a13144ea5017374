package ec2

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/lab/vpc"
)

func TestRulesReachTheDataPlane(t *testing.T) {
	f := newFixture(t, Config{})
	rds := *must(f.ec2.CreateSecurityGroup(f.ctx, &ec2.CreateSecurityGroupInput{VpcId: &f.vpc, GroupName: ptr("RDS_SG"), Description: ptr("db")}))(f).GroupId
	perm := types.IpPermission{IpProtocol: ptr("tcp"), FromPort: ptr(int32(5432)), ToPort: ptr(int32(5432)),
		UserIdGroupPairs: []types.UserIdGroupPair{{GroupId: &f.group}}, IpRanges: []types.IpRange{{CidrIp: ptr("10.1.2.3/32"), Description: ptr("admin")}}}
	in := &ec2.AuthorizeSecurityGroupIngressInput{GroupId: &rds, IpPermissions: []types.IpPermission{perm}}
	out := must(f.ec2.AuthorizeSecurityGroupIngress(f.ctx, in))(f)
	if len(out.SecurityGroupRules) != 2 {
		t.Fatalf("%d rules", len(out.SecurityGroupRules))
	}
	_, err := f.ec2.AuthorizeSecurityGroupIngress(f.ctx, in)
	wantCode(t, err, "InvalidPermission.Duplicate")

	ingress := func() []vpc.Rule {
		top := f.region.Topology()
		i := slices.IndexFunc(top.Groups, func(g vpc.SecurityGroup) bool { return g.ID == rds })
		return top.Groups[i].Ingress
	}
	if r := ingress(); len(r) != 2 || r[0].CIDR.String() != "10.1.2.3/32" || r[1].Group != f.group || r[1].Protocol != 6 || r[1].FromPort != 5432 {
		t.Errorf("data plane has %+v", r)
	}
	d := must(f.ec2.DescribeSecurityGroups(f.ctx, &ec2.DescribeSecurityGroupsInput{GroupIds: []string{rds}}))(f).SecurityGroups[0]
	if len(d.IpPermissions) != 1 || len(d.IpPermissions[0].IpRanges) != 1 || len(d.IpPermissions[0].UserIdGroupPairs) != 1 ||
		len(d.IpPermissionsEgress) != 1 || *d.IpPermissionsEgress[0].IpProtocol != "-1" || d.IpPermissionsEgress[0].FromPort != nil {
		t.Errorf("described: %+v", d)
	}
	rules := must(f.ec2.DescribeSecurityGroupRules(f.ctx, &ec2.DescribeSecurityGroupRulesInput{Filters: []types.Filter{{Name: ptr("group-id"), Values: []string{rds}}}}))(f)
	if len(rules.SecurityGroupRules) != 3 {
		t.Errorf("%d rules described, want 3", len(rules.SecurityGroupRules))
	}
	_, err = f.ec2.DeleteSecurityGroup(f.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &f.group})
	wantCode(t, err, "DependencyViolation")

	perm.IpRanges = nil
	must(f.ec2.RevokeSecurityGroupIngress(f.ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: &rds, IpPermissions: []types.IpPermission{perm}}))(f)
	_, err = f.ec2.RevokeSecurityGroupIngress(f.ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: &rds, IpPermissions: []types.IpPermission{perm}})
	wantCode(t, err, "InvalidPermission.NotFound")
	if r := ingress(); len(r) != 1 || r[0].Group != "" {
		t.Errorf("after the revocation: %+v", r)
	}
	must(f.ec2.DeleteSecurityGroup(f.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &rds}))(f)
	_, err = f.ec2.DeleteSecurityGroup(f.ctx, &ec2.DeleteSecurityGroupInput{GroupId: &rds})
	wantCode(t, err, "InvalidGroup.NotFound")
}

func TestTagsAreListed(t *testing.T) {
	f := newFixture(t, Config{})
	tag := types.Tag{Key: ptr("a"), Value: ptr("1")}
	must(f.ec2.CreateTags(f.ctx, &ec2.CreateTagsInput{Resources: []string{f.group, f.instance}, Tags: []types.Tag{tag}}))(f)
	must(f.ec2.DeleteTags(f.ctx, &ec2.DeleteTagsInput{Resources: []string{f.group}, Tags: []types.Tag{{Key: ptr("a"), Value: ptr("other")}}}))(f)
	list := func() []types.TagDescription {
		return must(f.ec2.DescribeTags(f.ctx, &ec2.DescribeTagsInput{Filters: []types.Filter{{Name: ptr("key"), Values: []string{"a"}}}}))(f).Tags
	}
	if got := list(); len(got) != 2 {
		t.Errorf("a tag with another value was deleted: %+v", got)
	}
	must(f.ec2.DeleteTags(f.ctx, &ec2.DeleteTagsInput{Resources: []string{f.group}, Tags: []types.Tag{{Key: ptr("a")}}}))(f)
	if got := list(); len(got) != 1 || got[0].ResourceType != "instance" || *got[0].ResourceId != f.instance {
		t.Errorf("%+v", got)
	}
	_, err := f.ec2.CreateTags(f.ctx, &ec2.CreateTagsInput{Resources: []string{"eni-0"}, Tags: []types.Tag{tag}})
	wantCode(t, err, "InvalidNetworkInterfaceID.NotFound")
}
