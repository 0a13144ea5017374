package trunk

import (
	"regexp"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/policy"
)

func provided(id string) *corev1.Node { return &corev1.Node{Spec: corev1.NodeSpec{ProviderID: id}} }

func TestOnlyEC2InstancesHaveAnInstanceID(t *testing.T) {
	for id, want := range map[string]string{
		"aws:///us-west-2a/i-0123456789abcdef0": "i-0123456789abcdef0", "aws:////i-01": "i-01" /* the zone may be empty */, "aws:///i-01": "",
		"aws:///us-west-2a/abc123-fargate-ip-192-168-1-1.us-west-2.compute.internal": "", "": "", "gce://p/z/i-01": "",
		"aws:///us-west-2a/i-": "", "aws:///us-west-2a/i-0x": "", "aws:///a/b/i-01": "", "aws:///us-west-2a/i-01\n": "", "eks-hybrid:///r/c/i-01": "",
	} {
		if got, ok := InstanceID(provided(id)); got != want || ok != (want != "") {
			t.Errorf("%q: %q, %v", id, got, ok)
		}
	}
}

func FuzzProviderID(f *testing.F) {
	for _, s := range []string{"aws:///us-west-2a/i-0123456789abcdef0", "aws:///", "aws:///x/i-1/", "x\naws:///a/i-1"} {
		f.Add(s)
	}
	instance := regexp.MustCompile(`\Ai-[0-9a-f]+\z`)
	f.Fuzz(func(t *testing.T, s string) {
		id, ok := InstanceID(provided(s))
		if ok && (!instance.MatchString(id) || !strings.HasPrefix(s, "aws:///") || !strings.HasSuffix(s, "/"+id)) || !ok && id != "" {
			t.Fatalf("%q: %q, %v", s, id, ok)
		}
	})
}

func TestCapacityFollowsTheLabelAndNeverLeavesPodsWithoutRoom(t *testing.T) {
	for _, tt := range []struct {
		what         string
		have         string // empty: not set
		labelled, up bool
		pods, max    int
		want         int64
		writes       bool
	}{
		{"label and trunk", "", true, true, 0, 9, 9, true},
		{"as it is already", "9", true, true, 5, 9, 0, false},
		{"another type's", "38", true, true, 0, 9, 9, true},
		{"label before the trunk", "", true, false, 0, 9, 0, false},
		{"no label yet", "", false, true, 0, 9, 0, false},
		{"label gone, pods left", "9", false, true, 3, 9, 3, true},
		{"label gone, written for those left", "3", false, true, 3, 9, 0, false},
		{"label gone, more pods than room", "3", false, true, 4, 9, 0, false},
		{"label gone, nobody left", "9", false, true, 0, 9, 0, true},
		{"label gone, written already", "0", false, true, 0, 9, 0, false},
	} {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{}}}
		if tt.labelled {
			n.Labels[Label] = "whatever"
		}
		if tt.have != "" {
			n.Status.Capacity = corev1.ResourceList{policy.Resource: resource.MustParse(tt.have)}
			n.Status.Allocatable = n.Status.Capacity
		}
		got, writes := capacity(n, int32(tt.max), tt.up, tt.pods)
		if got != tt.want || writes != tt.writes {
			t.Errorf("%s: %d, %v", tt.what, got, writes)
		}
	}
}

func TestTheTrunkGoesToTheHighestFreeIndexOfTheDefaultCard(t *testing.T) {
	m5 := aws.InstanceType{Name: "m5.large", MaxInterfaces: 3, InterfacesPerNetworkCard: []int{3}}
	two := aws.InstanceType{Name: "two-cards", MaxInterfaces: 7, DefaultNetworkCard: 1, InterfacesPerNetworkCard: []int{3, 4}}
	at := func(pairs ...[2]int) *cloud.Instance {
		i := &cloud.Instance{}
		for _, p := range pairs {
			i.Interfaces = append(i.Interfaces, cloud.Attached{NetworkCard: p[0], DeviceIndex: p[1]})
		}
		return i
	}
	for _, tt := range []struct {
		t    aws.InstanceType
		i    *cloud.Instance
		want int
		ok   bool
	}{
		{m5, at([2]int{0, 0}), 2, true},
		{m5, at([2]int{0, 0}, [2]int{0, 2}), 1, true},
		{m5, at([2]int{0, 0}, [2]int{0, 1}, [2]int{0, 2}), 0, false},
		{two, at([2]int{0, 0}, [2]int{0, 2}), 3, true},
		{two, at([2]int{0, 0}, [2]int{1, 3}), 2, true},
	} {
		if got, ok := deviceIndex(tt.t, tt.i); got != tt.want || ok != tt.ok {
			t.Errorf("%s with %+v: %d, %v", tt.t.Name, tt.i.Interfaces, got, ok)
		}
	}
}
