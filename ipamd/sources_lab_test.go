//go:build lab

package ipamd_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	"github.com/branchline-cni/branchline/lab/imds"
)

// makeSubnet makes a subnet of the nodes' zone, or of another.
func makeSubnet(t *testing.T, cidr, zone string, kv ...string) string {
	t.Helper()
	in := &ec2.CreateSubnetInput{VpcId: &w.vpc, CidrBlock: &cidr, AvailabilityZone: awssdk.String("us-west-2" + zone)}
	for i := 0; i < len(kv); i += 2 {
		if in.TagSpecifications == nil {
			in.TagSpecifications = []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeSubnet}}
		}
		in.TagSpecifications[0].Tags = append(in.TagSpecifications[0].Tags, ec2types.Tag{Key: awssdk.String(kv[i]), Value: awssdk.String(kv[i+1])})
	}
	s, err := w.ec2.CreateSubnet(t.Context(), in)
	must(t, err)
	return *s.Subnet.SubnetId
}

// fill takes what is left of a subnet away.
func fill(t *testing.T, subnet string) {
	t.Helper()
	out, err := w.ec2.DescribeSubnets(t.Context(), &ec2.DescribeSubnetsInput{SubnetIds: []string{subnet}})
	must(t, err)
	n := *out.Subnets[0].AvailableIpAddressCount
	if n == 0 {
		return
	}
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &subnet}
	if n--; n > 0 {
		in.SecondaryPrivateIpAddressCount = &n
	}
	_, err = w.ec2.CreateNetworkInterface(t.Context(), in)
	must(t, err)
}

// enis are the instance's as EC2 shows them, the primary first.
func (n *node) enis() []ec2types.NetworkInterface {
	n.t.Helper()
	out, err := w.ec2.DescribeNetworkInterfaces(n.t.Context(), &ec2.DescribeNetworkInterfacesInput{
		Filters: []ec2types.Filter{{Name: awssdk.String("attachment.instance-id"), Values: []string{n.id}}},
	})
	must(n.t, err)
	slices.SortFunc(out.NetworkInterfaces, func(a, b ec2types.NetworkInterface) int {
		return int(*a.Attachment.DeviceIndex - *b.Attachment.DeviceIndex)
	})
	return out.NetworkInterfaces
}

func (n *node) wantENIs(what string, subnets ...string) []ec2types.NetworkInterface {
	n.t.Helper()
	var all []ec2types.NetworkInterface
	eventually(n.t, what, func() bool {
		all = n.enis()
		var got []string
		for _, e := range all[1:] {
			got = append(got, *e.SubnetId)
		}
		return slices.Equal(got, subnets)
	})
	return all
}

func has(e ec2types.NetworkInterface, address string) bool {
	return slices.ContainsFunc(e.PrivateIpAddresses, func(a ec2types.NetworkInterfacePrivateIpAddress) bool { return *a.PrivateIpAddress == address })
}

func (n *node) edit(f func(*corev1.Node)) {
	n.t.Helper()
	o := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}
	must(n.t, w.admin.Get(n.t.Context(), client.ObjectKeyFromObject(o), o))
	f(o)
	must(n.t, w.admin.Update(n.t.Context(), o))
}

// TestCustomNetworkingOnRealParts: under the role that users apply, an ENIConfig that comes after the node, and another by a
// label that changes while the agent runs.
func TestCustomNetworkingOnRealParts(t *testing.T) {
	role(t, "custom", cniPolicy)
	n := launch(t, "custom", "192.168.64.0/24")
	n.env = []string{"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG=true", "ENI_CONFIG_LABEL_DEF=topology.kubernetes.io/zone", "WARM_ENI_TARGET=0"}
	pods, elsewhere, later := makeSubnet(t, "192.168.65.0/24", "a"), makeSubnet(t, "192.168.66.0/24", "b"), makeSubnet(t, "192.168.67.0/24", "a")
	g, err := w.ec2.CreateSecurityGroup(t.Context(), &ec2.CreateSecurityGroupInput{VpcId: &w.vpc, GroupName: awssdk.String("pods"), Description: awssdk.String("pods")})
	must(t, err)
	n.join()
	n.start()
	n.event(n.name, "ENIConfigMissing", "ENIConfig default", "topology.kubernetes.io/zone")
	config := func(name, subnet string, groups ...string) {
		t.Helper()
		c := &eniconfigv1.ENIConfig{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: eniconfigv1.ENIConfigSpec{Subnet: subnet, SecurityGroups: groups}}
		must(t, w.admin.Create(t.Context(), c))
		t.Cleanup(func() { must(t, w.admin.Delete(context.Background(), c)) })
	}
	config("default", elsewhere)
	n.event(n.name, "ENIConfigUnusable", "ENIConfig default", "us-west-2a")
	if n.ready() {
		t.Error("ready without an address for pods")
	}
	config("us-west-2a", pods, *g.GroupId)
	n.edit(func(o *corev1.Node) { o.Labels = map[string]string{"topology.kubernetes.io/zone": "us-west-2a"} })
	n.awaitReady()
	a := n.mustAdd(n.pod("custom-a", ""), "custom-a").GetRegular().GetAddress()
	all := n.wantENIs("an ENI after the ENIConfig", pods)
	if len(all[0].PrivateIpAddresses) != 1 || !has(all[1], a) || len(all[1].Groups) != 1 || *all[1].Groups[0].GroupId != *g.GroupId {
		t.Errorf("the primary has %d addresses, the pod %s; the ENI: %+v", len(all[0].PrivateIpAddresses), a, all[1])
	}
	config("later", later)
	n.edit(func(o *corev1.Node) { o.Labels["vpc.amazonaws.com/externalEniConfig"] = "later" })
	all = n.wantENIs("one after the other ENIConfig", pods, later)
	if b := n.mustAdd(n.pod("custom-b", ""), "custom-b").GetRegular().GetAddress(); !has(all[2], b) || !has(all[1], a) {
		t.Errorf("the new pod has %s", b)
	}
}

func TestSubnetsByTagOnRealParts(t *testing.T) {
	role(t, "tagged", cniPolicy)
	const let, ours = "kubernetes.io/role/cni", "cni.networking.k8s.aws/cluster/blue"
	n := launch(t, "tagged", "192.168.68.0/28") // 11 addresses
	n.env = []string{"CLUSTER_NAME=blue"}
	small, large := makeSubnet(t, "192.168.69.0/28", "a", let, "1", ours, "shared"), makeSubnet(t, "192.168.70.0/27", "a", let, "1", ours, "shared")
	makeSubnet(t, "192.168.71.0/24", "a", let, "1", "cni.networking.k8s.aws/cluster/red", "shared")
	makeSubnet(t, "192.168.72.0/24", "b", let, "1", ours, "shared")
	fill(t, n.subnet)
	n.join()
	n.start()
	n.awaitReady()
	// The primary's subnet is full, so that the emptiest of the others is the first.
	n.wantENIs("an ENI in the larger subnet", large)
	fill(t, large)
	fill(t, small)
	for i := range 9 {
		p := n.pod(fmt.Sprintf("tagged-%d", i), "")
		n.mustAdd(p, p.Name)
	}
	n.event(n.name, "AddressesNotAvailable", "InsufficientFreeAddressesInSubnet", small, large, n.subnet, let)
	more := makeSubnet(t, "192.168.73.0/27", "a", let, "1", ours, "shared")
	n.kill() // so that tags are read now; a running agent reads them again within a minute
	n.start()
	n.wantENIs("an ENI in the subnet that came", large, more)
	// Kept out by its tag, a subnet gets no more ENIs, and its pods stay.
	_, err := w.ec2.CreateTags(t.Context(), &ec2.CreateTagsInput{Resources: []string{large}, Tags: []ec2types.Tag{{Key: awssdk.String(let), Value: awssdk.String("0")}}})
	must(t, err)
	n.kill()
	n.start()
	n.awaitReady()
	p := n.pod("tagged-late", "")
	if a := n.mustAdd(p, p.Name).GetRegular().GetAddress(); !has(n.enis()[2], a) {
		t.Errorf("a new pod has %s", a)
	}
	if n := len(n.enis()[1].PrivateIpAddresses); n != 10 {
		t.Errorf("the ENI with pods has %d addresses", n)
	}
}

// attach does what a user does who brings an ENI of their own.
func (n *node) attach(device int32, addresses int32, kv ...string) string {
	n.t.Helper()
	in := &ec2.CreateNetworkInterfaceInput{SubnetId: &n.subnet, Groups: []string{w.group}, SecondaryPrivateIpAddressCount: &addresses}
	if len(kv) > 0 {
		in.TagSpecifications = []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeNetworkInterface, Tags: []ec2types.Tag{{Key: &kv[0], Value: &kv[1]}}}}
	}
	return n.attachNew(device, in)
}

func (n *node) attachNew(device int32, in *ec2.CreateNetworkInterfaceInput) string {
	n.t.Helper()
	out, err := w.ec2.CreateNetworkInterface(n.t.Context(), in)
	must(n.t, err)
	_, err = w.ec2.AttachNetworkInterface(n.t.Context(), &ec2.AttachNetworkInterfaceInput{NetworkInterfaceId: out.NetworkInterface.NetworkInterfaceId, InstanceId: &n.id, DeviceIndex: &device})
	must(n.t, err)
	eventually(n.t, "IMDS shows it", func() bool {
		i, _ := w.region.Metadata(n.id).Instance()
		return slices.ContainsFunc(i.Interfaces, func(e imds.Interface) bool { return e.ENIID == *out.NetworkInterface.NetworkInterfaceId })
	})
	return *out.NetworkInterface.NetworkInterfaceId
}

func TestENIsOfOthersOnRealParts(t *testing.T) {
	role(t, "others", cniPolicy)
	n := launch(t, "others", "192.168.74.0/24")
	n.env = []string{"WARM_ENI_TARGET=0", "MANAGE_UNTAGGED_ENI=false"}
	n.attach(1, 9)
	n.attach(2, 9, "node.k8s.amazonaws.com/no_manage", "false")
	n.join()
	n.start()
	n.awaitReady()
	held := map[string]bool{}
	for i := range 18 {
		p := n.pod(fmt.Sprintf("others-%d", i), "")
		held[n.mustAdd(p, p.Name).GetRegular().GetAddress()] = true
	}
	n.wantRefused(n.pod("others-18", ""), 5*time.Second, codes.ResourceExhausted, "m5.large")
	for _, a := range n.enis()[1].PrivateIpAddresses {
		if held[*a.PrivateIpAddress] {
			t.Errorf("a pod has %s of an ENI that is to be left alone", *a.PrivateIpAddress)
		}
	}
	n.kill()
	n.env[1] = "MANAGE_UNTAGGED_ENI=true"
	n.start()
	n.awaitReady()
	if a := n.mustAdd(n.pod("others-19", ""), "others-19").GetRegular().GetAddress(); !has(n.enis()[1], a) {
		t.Errorf("the pod has %s", a)
	}
}

func TestACordonedNodeOnRealParts(t *testing.T) {
	role(t, "cordoned", cniPolicy)
	n := launch(t, "cordoned", "192.168.75.0/24")
	n.join()
	n.edit(func(o *corev1.Node) { o.Spec.Unschedulable = true })
	n.start()
	n.awaitReady()
	for i := range 9 {
		p := n.pod(fmt.Sprintf("cordoned-%d", i), "")
		n.mustAdd(p, p.Name)
	}
	late := n.pod("cordoned-late", "")
	n.wantRefused(late, 5*time.Second, codes.ResourceExhausted, "cordoned", "AWS_MANAGE_ENIS_NON_SCHEDULABLE")
	if len(n.enis()) != 1 {
		t.Error("an ENI was made")
	}
	n.edit(func(o *corev1.Node) { o.Spec.Unschedulable = false })
	n.wantENIs("an ENI with the uncordon", n.subnet)
	n.mustAdd(late, "cordoned-late")
}

// TestWhatOthersProvideIsUsed: with provisioning off, and without any EC2 at all.
func TestWhatOthersProvideIsUsed(t *testing.T) {
	for i, name := range []string{"DISABLE_NETWORK_RESOURCE_PROVISIONING", "ENABLE_IMDS_ONLY_MODE"} {
		t.Run(name, func(t *testing.T) {
			profile := fmt.Sprintf("provided-%d", i)
			role(t, profile, `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:DescribeNetworkInterfaces","Resource":"*"}]}`)
			n := launch(t, profile, fmt.Sprintf("192.168.%d.0/24", 76+i))
			if i == 1 {
				n.endpoint = "http://127.0.0.1:9" // nobody listens
			}
			n.env = []string{name + "=true"}
			n.attach(1, 2)
			n.join()
			n.start()
			n.awaitReady()
			for p := range 2 {
				p := n.pod(fmt.Sprintf("provided-%d-%d", i, p), "")
				if a := n.mustAdd(p, p.Name).GetRegular().GetAddress(); !has(n.enis()[1], a) {
					t.Errorf("%s has %s", p.Name, a)
				}
			}
			late := n.pod(fmt.Sprintf("provided-%d-late", i), "")
			n.wantRefused(late, 5*time.Second, codes.ResourceExhausted, name)
			if all := n.enis(); len(all) != 2 || len(all[0].PrivateIpAddresses) != 1 {
				t.Errorf("%d ENIs, the primary with %d addresses", len(all), len(all[0].PrivateIpAddresses))
			}
			// What is provided later is used, too.
			count, primary := int32(1), n.enis()[0].NetworkInterfaceId
			_, err := w.ec2.AssignPrivateIpAddresses(t.Context(), &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: primary, SecondaryPrivateIpAddressCount: &count})
			must(t, err)
			n.kill() // IMDS is read at start, and then every minute
			n.start()
			n.awaitReady()
			n.mustAdd(late, late.Name)
		})
	}
}
