//go:build lab

package ipv6_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/lab/artifacts"
)

// TestPodsOfAnIPv6Cluster goes from a node that joins to its last pod's end: regular pods reach each other and other ENIs by
// IPv6, and IPv4 by the node; a branch pod reaches what its own security groups let it, in both modes, and others don't.
func TestPodsOfAnIPv6Cluster(t *testing.T) {
	cache, err := artifacts.Open()
	must(t, err)
	c := newCluster(t, cache)
	bin := c.programs(cache)
	c.specs(cache, bin)
	for app, group := range map[string]string{"green": "pod", "blue": "other-pod"} {
		must(t, c.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: app},
			Spec:       v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{c.groups[group]}}},
		}))
	}
	db := c.launch(types.InstanceTypeT3Medium, "db")
	db.serve(5432)
	db.serve(443)
	n := c.node(bin)
	rows, web := netip.AddrPortFrom(db.ipv6, 5432), netip.AddrPortFrom(db.ipv6, 443)

	n.run()
	prefix := n.prefix(t)
	a, b := n.pod("a", "").add(), n.pod("b", "").add()
	for _, p := range []*pod{a, b} {
		if !prefix.Contains(p.ipv6) {
			t.Errorf("%s has %s, the node's prefix is %s", p.o.Name, p.ipv6, prefix)
		}
	}
	if out, ok := a.pings(b.ipv6, patient); !ok {
		t.Errorf("regular pod a does not reach b on its node:\n%s", out)
	}
	if got := b.reads(web, patient); got != "hello "+b.ipv6.String() {
		t.Errorf("regular pod b reads %q from %s", got, web)
	}
	if got := a.reads(rows, brief); got != "" {
		t.Errorf("regular pod a reads %q from %s", got, rows)
	}
	c.refused(t, a.ipv6, db.eni, 5432)
	c.allow("db", "tcp", 443, "node") // by IPv4 it is the node that asks
	node4, db4 := c.ipv4(t, n.eni), c.ipv4(t, db.eni)
	if got := a.reads(netip.AddrPortFrom(db4, 443), patient); got != "hello "+node4.String() {
		t.Errorf("by IPv4 regular pod a reads %q, the node is %s", got, node4)
	}

	green := n.pod("green", "green").add() // its trunk is asked for, made, attached and labelled meanwhile
	c.wired(t, green, "pod")
	if got := green.reads(rows, patient); got != "hello "+green.ipv6.String() {
		t.Errorf("branch pod green reads %q from %s", got, rows)
	}
	blue := n.pod("blue", "blue").add()
	if got := blue.reads(rows, brief); got != "" {
		t.Errorf("branch pod blue, without the group, reads %q", got)
	}
	c.refused(t, blue.ipv6, db.eni, 5432)
	// What pods of one node send to a strict branch pod passes its security groups, too.
	if out, ok := a.pings(green.ipv6, brief); ok {
		t.Errorf("a regular pod reaches a strict branch pod past its groups:\n%s", out)
	}

	n.kill()
	n.run("POD_SECURITY_GROUP_ENFORCING_MODE=standard")
	again := *a
	if again.add(); again.ipv6 != a.ipv6 || n.prefix(t) != prefix {
		t.Errorf("after the agent was killed a has %s, it had %s; the prefix is %s", again.ipv6, a.ipv6, n.prefix(t))
	}
	standard := n.pod("green-2", "green").add()
	if got := standard.reads(rows, patient); got != "hello "+standard.ipv6.String() {
		t.Errorf("branch pod green-2, in standard mode, reads %q from %s", got, rows)
	}
	if out, ok := a.pings(standard.ipv6, patient); !ok { // on the node, its groups are not asked
		t.Errorf("regular pod a does not reach green-2 on its node:\n%s", out)
	}
	if got := green.reads(rows, patient); got != "hello "+green.ipv6.String() {
		t.Errorf("branch pod green, strict as ever, reads %q from %s", got, rows)
	}

	for _, p := range []*pod{a, b, green, blue, standard} {
		p.end()
	}
	eventually(t, "the branch ENIs are gone", func() error {
		out, err := c.account.EC2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{
			Filters: []types.Filter{{Name: awssdk.String("description"), Values: []string{"aws-k8s-branch-eni"}}}})
		if err == nil && len(out.NetworkInterfaces) > 0 {
			err = fmt.Errorf("%d are there", len(out.NetworkInterfaces))
		}
		return err
	})
	left := n.sh(`ip -br link | grep -E '^(eni|vlan)' ; ip -6 route show table 511; ip -6 route show table 510; ip -6 rule | grep -E '^10:'; true`)
	if left != "" {
		t.Errorf("left on the node:\n%s", left)
	}
}

// prefix is the node's one, as EC2 has it.
func (n *node) prefix(t *testing.T) netip.Prefix {
	t.Helper()
	out, err := n.c.account.EC2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{n.eni}})
	must(t, err)
	if all := out.NetworkInterfaces[0].Ipv6Prefixes; len(all) != 1 {
		t.Fatalf("the primary ENI has %d prefixes", len(all))
	}
	return netip.MustParsePrefix(*out.NetworkInterfaces[0].Ipv6Prefixes[0].Ipv6Prefix)
}

func (c *cluster) ipv4(t *testing.T, eniID string) netip.Addr {
	t.Helper()
	out, err := c.account.EC2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{NetworkInterfaceIds: []string{eniID}})
	must(t, err)
	return netip.MustParseAddr(*out.NetworkInterfaces[0].PrivateIpAddress)
}

// wired wants the pod to have a branch ENI with its address and this group, and its annotation to say so.
func (c *cluster) wired(t *testing.T, p *pod, group string) {
	t.Helper()
	var o corev1.Pod
	must(t, c.admin.Get(t.Context(), client.ObjectKeyFromObject(p.o), &o))
	value := o.Annotations["vpc.amazonaws.com/pod-eni"]
	out, err := c.account.EC2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{
		Filters: []types.Filter{{Name: awssdk.String("ipv6-addresses.ipv6-address"), Values: []string{p.ipv6.String()}}}})
	must(t, err)
	if len(out.NetworkInterfaces) != 1 {
		t.Fatalf("%d ENIs have %s", len(out.NetworkInterfaces), p.ipv6)
	}
	e := out.NetworkInterfaces[0]
	if e.InterfaceType != "branch" || len(e.Groups) != 1 || *e.Groups[0].GroupId != c.groups[group] {
		t.Errorf("%+v", e)
	}
	for _, part := range []string{*e.NetworkInterfaceId, *e.MacAddress, `"ipv6Addr":"` + p.ipv6.String() + `"`, `"subnetV6Cidr":"` + c.ipv6.String() + `"`} {
		if !strings.Contains(value, part) {
			t.Errorf("the annotation %s lacks %s", value, part)
		}
	}
}
