package demo

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
)

const (
	vpcWide  = "192.168.0.0/16"
	anywhere = "0.0.0.0/0"
)

// open is one permission for a CIDR: protocol "-1" has no ports.
func open(protocol string, first, last int32, cidr string) ec2types.IpPermission {
	return ec2types.IpPermission{IpProtocol: &protocol, FromPort: &first, ToPort: &last, IpRanges: []ec2types.IpRange{{CidrIp: &cidr}}}
}

// ruleChange is permissions to add to a group, and whether its leave to send anything anywhere is taken from it.
type ruleChange struct {
	group           string
	ingress, egress []ec2types.IpPermission
}

// rules makes the branch pods' group and changes the others so that of the flows' ports the hundreds 81 are let through
// by all, 82 not let out by anybody, and 83 not let in by anybody. restore takes the changes back.
func (m *modesWalk) rules(ctx context.Context) (restore func(context.Context) error, err error) {
	account := m.lab.Account()
	if m.group, err = account.Group(ctx, m.lab.Network.VPCID, "MODES_SG", "branch pods of the step on modes"); err != nil {
		return nil, err
	}
	m.modesGroup = m.group
	m.seen = packets{address: map[string]string{}, groups: map[string]string{
		thePod: m.group, theOther: m.group, theNode: m.lab.Network.NodeGroupID, theOtherNode: m.lab.Network.NodeGroupID,
		itsENI: m.rdsGroup, controlPlane: m.lab.Network.ClusterGroupID,
	}}
	letIn := open("tcp", 8100, 8299, vpcWide)
	letOut := []ec2types.IpPermission{open("tcp", 8100, 8199, anywhere), open("tcp", 8300, 8399, anywhere)}
	changes := []ruleChange{
		{m.group, []ec2types.IpPermission{letIn, {
			IpProtocol: aws.String("tcp"), FromPort: aws.Int32(httpProbePort), ToPort: aws.Int32(tcpProbePort),
			UserIdGroupPairs: []ec2types.UserIdGroupPair{{GroupId: &m.lab.Network.NodeGroupID}},
		}}, append(letOut, open("udp", 53, 53, anywhere), open("tcp", 6443, 6443, vpcWide))},
		// Everything but the hundred 82: the node goes on with what it does.
		{m.lab.Network.NodeGroupID, []ec2types.IpPermission{letIn, open("udp", 53, 53, vpcWide)}, []ec2types.IpPermission{
			open("udp", 0, 65535, anywhere), open("tcp", 0, 8199, anywhere), open("tcp", 8300, 65535, anywhere)}},
		{m.rdsGroup, []ec2types.IpPermission{letIn}, letOut},
		{m.lab.Network.ClusterGroupID, []ec2types.IpPermission{open("tcp", 6443, 6443, vpcWide)}, nil},
	}
	for _, c := range changes {
		if err := m.change(ctx, c, true); err != nil {
			return nil, err
		}
	}
	return func(ctx context.Context) error {
		for _, c := range slices.Backward(changes[1:]) { // the pods' own group is in use until their ENIs are gone
			if err := m.change(ctx, c, false); err != nil {
				return err
			}
		}
		return nil
	}, nil
}

// change makes a change, or takes it back. A group can send at every moment what it may send before and after.
func (m *modesWalk) change(ctx context.Context, c ruleChange, make bool) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	api := m.lab.Account().EC2
	var calls []func() error
	everything := []ec2types.IpPermission{open("-1", -1, -1, anywhere)}
	authorize := func(p []ec2types.IpPermission) func() error {
		return func() error {
			_, err := api.AuthorizeSecurityGroupEgress(ctx, &ec2.AuthorizeSecurityGroupEgressInput{GroupId: &c.group, IpPermissions: p})
			return err
		}
	}
	revoke := func(p []ec2types.IpPermission) func() error {
		return func() error {
			_, err := api.RevokeSecurityGroupEgress(ctx, &ec2.RevokeSecurityGroupEgressInput{GroupId: &c.group, IpPermissions: p})
			return err
		}
	}
	if make {
		calls = append(calls, func() error {
			_, err := api.AuthorizeSecurityGroupIngress(ctx, &ec2.AuthorizeSecurityGroupIngressInput{GroupId: &c.group, IpPermissions: c.ingress})
			return err
		})
	} else {
		calls = append(calls, func() error {
			_, err := api.RevokeSecurityGroupIngress(ctx, &ec2.RevokeSecurityGroupIngressInput{GroupId: &c.group, IpPermissions: c.ingress})
			return err
		})
	}
	switch {
	case len(c.egress) == 0:
	case make:
		calls = append(calls, authorize(c.egress), revoke(everything))
	default:
		calls = append(calls, authorize(everything), revoke(c.egress))
	}
	for _, call := range calls {
		if err := call(); err != nil {
			return fmt.Errorf("change the rules of %s for the step on modes: %w", c.group, err)
		}
	}
	return nil
}
