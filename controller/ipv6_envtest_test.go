//go:build envtest

package controller_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
)

// TestABranchENIOfADualStackSubnetHasBothFamilies: which family its pod uses is the node's to know. An attempt that a dead
// controller had begun ends with the same ENI, and a ledger that lost the pod takes it back whole. One that was made
// before the subnet had an IPv6 range learns of it.
func TestABranchENIOfADualStackSubnetHasBothFamilies(t *testing.T) {
	v, err := w.ec2.CreateVpc(t.Context(), &ec2.CreateVpcInput{CidrBlock: awssdk.String("10.66.0.0/16"), AmazonProvidedIpv6CidrBlock: awssdk.Bool(true)})
	must(t, err)
	described, err := w.ec2.DescribeVpcs(t.Context(), &ec2.DescribeVpcsInput{VpcIds: []string{*v.Vpc.VpcId}})
	must(t, err)
	ipv6 := netip.PrefixFrom(netip.MustParsePrefix(*described.Vpcs[0].Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlock).Addr(), 64)
	s, err := w.ec2.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("10.66.0.0/24"), Ipv6CidrBlock: awssdk.String(ipv6.String())})
	must(t, err)
	group, err := w.account.Group(t.Context(), *v.Vpc.VpcId, "POD_SG", "pods")
	must(t, err)
	out, err := w.ec2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		InstanceType: "m5.large", SubnetId: s.Subnet.SubnetId, SecurityGroupIds: []string{group}, MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1),
		ImageId: awssdk.String("ami-1"), Ipv6AddressCount: awssdk.Int32(1),
	})
	must(t, err)
	id := *out.Instances[0].InstanceId
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "dual"}}))
	must(t, w.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "dual", Name: "p"},
		Spec:       v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{group}}},
	}))
	register(t, "dual", "m5.large", id)

	_, stop := start(t, 0, nil)
	ready(t, "dual", id, 9)
	must(t, stop())
	p := pod(t, "dual", "green", "dual")
	k, stop := start(t, 1, nil) // dies once the intent is written, and before EC2 is asked
	<-k.dead
	_ = stop()
	_, stop = start(t, 0, nil)
	check := func() string {
		t.Helper()
		value := annotated(t, p)
		_, b := inEC2(t, id)
		if len(b) != 1 || len(b[0].Ipv6Addresses) != 1 {
			t.Fatalf("branch ENIs %+v", b)
		}
		var a []map[string]any
		must(t, json.Unmarshal([]byte(value), &a))
		address := *b[0].Ipv6Addresses[0].Ipv6Address
		if a[0]["ipv6Addr"] != address || a[0]["subnetV6Cidr"] != ipv6.String() || a[0]["privateIp"] != *b[0].PrivateIpAddress || a[0]["subnetCidr"] != "10.66.0.0/24" {
			t.Fatalf("annotation %s for %+v", value, b[0])
		}
		for _, family := range []bool{false, true} {
			if got, err := annotation.Parse(value, family); err != nil || got.Address.Is6() != family || got.Doubt != "" {
				t.Errorf("the agent reads %+v, %v", got, err)
			}
		}
		told(t, p, "ResourceAllocated", address)
		return address
	}
	address := check()
	must(t, stop())
	eventually(t, "the ledger loses the pod", func() error {
		l := ledgerOf(t, id)
		l.Spec.Slots = nil
		return w.admin.Update(t.Context(), l)
	})
	_, stop = start(t, 0, nil)
	eventually(t, "the ledger has it again", func() error {
		l := ledgerOf(t, id)
		if len(l.Spec.Slots) != 1 {
			return errors.New("no slot")
		}
		if slot := l.Spec.Slots[0]; slot.State != ledgerv1.Bound || slot.IPv6Address != address || slot.SubnetIPv6CIDR != ipv6.String() {
			return fmt.Errorf("%+v", slot)
		}
		return nil
	})
	check()
	must(t, stop())
	eventually(t, "the ledger is of the time before the subnet had IPv6", func() error {
		l := ledgerOf(t, id)
		l.Spec.SubnetIPv6CIDR = ""
		return w.admin.Update(t.Context(), l)
	})
	start(t, 0, nil)
	eventually(t, "the ledger has the range", func() error {
		if got := ledgerOf(t, id).Spec.SubnetIPv6CIDR; got != ipv6.String() {
			return fmt.Errorf("it has %q", got)
		}
		return nil
	})
	check()
	remove(t, p)
	confirm(t, id, p)
	branches(t, id, 0)
}
