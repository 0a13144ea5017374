package trunk

import (
	"regexp"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/policy"
)

// Label is set on the node by its agent once the trunk is up.
const Label = "vpc.amazonaws.com/has-trunk-attached"

var providerID = regexp.MustCompile(`^aws:///[^/]*/(i-[0-9a-f]+)$`)

// InstanceID reads the EC2 instance from the node's provider id. ok is false for nodes that are no EC2 instances, Fargate's
// among them, and for nodes that no cloud provider has seen yet.
func InstanceID(node *corev1.Node) (id string, ok bool) {
	m := providerID.FindStringSubmatch(node.Spec.ProviderID)
	if m == nil {
		return "", false
	}
	return m[1], true
}

// silent says whether the node is not ready: its kubelet says so, or has said nothing for long.
func silent(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status != corev1.ConditionTrue
		}
	}
	return false
}

// Linux says whether the node's system is Linux, as far as is known.
func Linux(node *corev1.Node) bool {
	os := node.Labels[corev1.LabelOSStable]
	return os == "" || os == "linux"
}

// Managed says whether the node takes part: its agent asked for the feature, or labelled the node, with whatever value.
func Managed(node *corev1.Node, cninode *v1alpha1.CNINode) bool {
	if _, ok := node.Labels[Label]; ok {
		return true
	}
	if cninode == nil {
		return false
	}
	_, ok := cninode.Has(v1alpha1.SecurityGroupsForPods)
	return ok
}

// capacity decides what the node's capacity should be. The scheduler gets room as soon as the agent says, by the label,
// that it can wire branch pods. Once the label is gone the room shrinks with the pods that run, so that the scheduler
// places none beside them; those that wait are not counted, as the agent wires them no more. ok is false where nothing is to
// be written.
func capacity(node *corev1.Node, max int32, trunkUp bool, running int) (want int64, ok bool) {
	have, set := node.Status.Capacity[policy.Resource]
	_, labelled := node.Labels[Label]
	switch {
	case labelled && trunkUp:
		want = int64(max)
	case labelled, !set:
		return 0, false
	default:
		want = min(int64(running), have.Value())
	}
	allocatable, aset := node.Status.Allocatable[policy.Resource]
	if set && aset && have.Value() == want && allocatable.Value() == want {
		return 0, false
	}
	return want, true
}

// runs counts the pods that have been wired.
func runs(pods []corev1.Pod) int {
	n := 0
	for i := range pods {
		if pods[i].Status.Phase == corev1.PodRunning {
			n++
		}
	}
	return n
}

func quantity(n int64) resource.Quantity { return *resource.NewQuantity(n, resource.DecimalSI) }

// deviceIndex chooses where the trunk goes: the highest free index of the default card. The agent attaches its own at
// the lowest, so that the two do not meet.
func deviceIndex(t aws.InstanceType, i *cloud.Instance) (index int, ok bool) {
	limit := t.MaxInterfaces
	if t.DefaultNetworkCard < len(t.InterfacesPerNetworkCard) {
		limit = t.InterfacesPerNetworkCard[t.DefaultNetworkCard]
	}
	taken := map[int]bool{}
	for _, a := range i.Interfaces {
		if a.NetworkCard == t.DefaultNetworkCard {
			taken[a.DeviceIndex] = true
		}
	}
	if len(i.Interfaces) >= t.MaxInterfaces {
		return 0, false
	}
	for index = limit - 1; index > 0; index-- {
		if !taken[index] {
			return index, true
		}
	}
	return 0, false
}

// attachedTrunk finds the trunk among the instance's interfaces.
func attachedTrunk(i *cloud.Instance) *cloud.Attached {
	for n := range i.Interfaces {
		if i.Interfaces[n].Trunk {
			return &i.Interfaces[n]
		}
	}
	return nil
}
