//go:build envtest

package controller_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/trunk"
)

// askCustom is what the agent writes under custom networking.
func askCustom(t *testing.T, node, config string) {
	t.Helper()
	eventually(t, "CNINode of "+node, func() error {
		return w.admin.Patch(t.Context(), &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: node}},
			client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"spec":{"features":[{"name":"CustomNetworking","value":%q},{"name":"SecurityGroupsForPods"}]}}`, config)))
	})
}

func eniConfig(t *testing.T, name, subnet string, groups ...string) *eniconfigv1.ENIConfig {
	t.Helper()
	c := &eniconfigv1.ENIConfig{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: eniconfigv1.ENIConfigSpec{Subnet: subnet, SecurityGroups: groups}}
	must(t, w.admin.Create(t.Context(), c))
	t.Cleanup(func() { w.admin.Delete(t.Context(), c) })
	return c
}

// trunkOf waits for an instance's trunk, in EC2's words.
func trunkOf(t *testing.T, id string) ec2types.NetworkInterface {
	t.Helper()
	var e ec2types.NetworkInterface
	eventually(t, "trunk of "+id, func() error {
		l := ledgerOf(t, id)
		if l == nil || l.Spec.TrunkENIID == "" {
			return fmt.Errorf("ledger %+v", l)
		}
		out, err := w.ec2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{l.Spec.TrunkENIID}})
		if err != nil {
			return err
		}
		e = out.NetworkInterfaces[0]
		return nil
	})
	return e
}

func groupsOf(e ec2types.NetworkInterface) (ids []string) {
	for _, g := range e.Groups {
		ids = append(ids, *g.GroupId)
	}
	return ids
}

// branchIn wants the pod's branch ENI in the subnet, and the annotation to say so.
func branchIn(t *testing.T, id string, p *corev1.Pod, subnetID, cidr string) {
	t.Helper()
	value := annotated(t, p)
	if !strings.Contains(value, `"subnetCidr":"`+cidr+`"`) {
		t.Errorf("the annotation of %s is %s, want subnet %s", p.Name, value, cidr)
	}
	_, all := inEC2(t, id)
	i := slices.IndexFunc(all, func(e ec2types.NetworkInterface) bool { return strings.Contains(value, *e.NetworkInterfaceId) })
	if i < 0 || *all[i].SubnetId != subnetID || !slices.Equal(groupsOf(all[i]), []string{w.group}) {
		t.Errorf("branch ENIs %+v, want %s's in %s with the policy's groups", all, p.Name, subnetID)
	}
}

func pods(t *testing.T, cidr string) (subnetID string) {
	t.Helper()
	id, err := subnet(t.Context(), cidr)
	must(t, err)
	return id
}

func TestCustomNetworkingsTrunkAndBranchENIsAreMadeAfterTheENIConfig(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "custom")
	first, second := pods(t, "192.168.64.0/20"), pods(t, "192.168.80.0/20")
	group, err := w.account.Group(t.Context(), w.vpc, "CUSTOM_SG", "an ENIConfig's")
	must(t, err)
	config := eniConfig(t, "custom-a", first, group)
	eniConfig(t, "custom-b", second)
	id := launch(t, "custom", "m5.large", w.subnet)
	askCustom(t, "custom", "custom-a")
	if e := trunkOf(t, id); *e.SubnetId != first || !slices.Equal(groupsOf(e), []string{group}) {
		t.Fatalf("the trunk is in %s with %v, want %s with %s", *e.SubnetId, groupsOf(e), first, group)
	}
	label(t, "custom", true)
	capacity(t, "custom", 9)
	one := pod(t, "custom", "one", "custom")
	branchIn(t, id, one, first, "192.168.64.0/20")

	// The node gets another ENIConfig: the trunk and what is there stay, later branch ENIs follow.
	trunkBefore := *trunkOf(t, id).NetworkInterfaceId
	askCustom(t, "custom", "custom-b")
	followed := func(config, subnetID string) {
		t.Helper()
		eventually(t, "the ledger follows", func() error {
			if n := ledgerOf(t, id).Spec.CustomNetworking; n == nil && config != "" || n != nil && (n.ENIConfig != config || n.SubnetID != subnetID) {
				return fmt.Errorf("%+v", n)
			}
			return nil
		})
	}
	followed("custom-b", second)
	branchIn(t, id, pod(t, "custom", "two", "custom"), second, "192.168.80.0/20")
	branchIn(t, id, one, first, "192.168.64.0/20")

	// The first one comes back, by the label that agents of before wrote, and is edited on the way.
	config.Spec.Subnet = second
	must(t, w.admin.Update(t.Context(), config))
	must(t, w.admin.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "custom"}},
		client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"`+trunk.ConfigLabel+`":"custom-a"}}}`))))
	followed("custom-a", second)
	config.Spec.Subnet = first
	must(t, w.admin.Update(t.Context(), config))
	followed("custom-a", first)
	branchIn(t, id, pod(t, "custom", "three", "custom"), first, "192.168.64.0/20")

	// Gone: what was known goes on, and it is said. Without custom networking ENIs are made beside the primary one again.
	must(t, w.admin.Delete(t.Context(), config))
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "custom"), &n))
	told(t, &n, "ENIConfigMissing", "custom-a", "spec.subnet")
	branchIn(t, id, pod(t, "custom", "four", "custom"), first, "192.168.64.0/20")
	must(t, w.admin.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "custom"}},
		client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"`+trunk.ConfigLabel+`":null}}}`))))
	ask(t, "custom")
	followed("", "")
	branchIn(t, id, pod(t, "custom", "five", "custom"), w.subnet, "192.168.0.0/19")
	if now := *trunkOf(t, id).NetworkInterfaceId; now != trunkBefore {
		t.Errorf("the trunk was %s and is %s", trunkBefore, now)
	}
}

func TestATrunkWaitsForItsENIConfig(t *testing.T) {
	start(t, 0, nil)
	id := launch(t, "waits", "m5.large", w.subnet)
	askCustom(t, "waits", "late")
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "waits"), &n))
	told(t, &n, "ENIConfigMissing", `"late"`)
	elsewhere, err := w.ec2.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: &w.vpc, CidrBlock: awssdk.String("192.168.96.0/24"), AvailabilityZone: awssdk.String("us-west-2b")})
	must(t, err)
	config := eniConfig(t, "late", *elsewhere.Subnet.SubnetId)
	told(t, &n, "ENIConfigUnusable", *elsewhere.Subnet.SubnetId, "us-west-2b")
	if trunks, _ := inEC2(t, id); trunks != 0 {
		t.Fatal("a trunk was made without a place for it")
	}
	config.Spec.Subnet = pods(t, "192.168.97.0/24")
	must(t, w.admin.Update(t.Context(), config))
	e := trunkOf(t, id)
	// Without groups of its own it has those of the primary ENI.
	if *e.SubnetId != config.Spec.Subnet || !slices.Equal(groupsOf(e), []string{w.group}) {
		t.Errorf("the trunk is in %s with %v", *e.SubnetId, groupsOf(e))
	}
	if l := ledgerOf(t, id); l.Spec.SubnetID != w.subnet || l.Spec.CustomNetworking == nil || *l.Spec.CustomNetworking != (ledgerv1.CustomNetworking{
		ENIConfig: "late", SubnetID: config.Spec.Subnet, SubnetCIDR: "192.168.97.0/24"}) {
		t.Errorf("the ledger has %+v, %+v", l.Spec, l.Spec.CustomNetworking)
	}
}
