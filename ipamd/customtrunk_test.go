package ipamd

import (
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
)

func TestTheControllerIsToldTheENIConfigBeforeItIsAskedForATrunk(t *testing.T) {
	w := newWorld(t, &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"], w.env["ENABLE_POD_ENI"] = "true", "true"
	w.cloud.subnets = []types.Subnet{subnet("subnet-1", 100), subnet("subnet-pods", 100)}
	w.start()
	features := func(want ...cninodev1.Feature) func() bool {
		return func() bool {
			var n cninodev1.CNINode
			_ = w.api.Get(t.Context(), client.ObjectKey{Name: nodeName}, &n)
			return slices.Equal(n.Spec.Features, want)
		}
	}
	trunk := cninodev1.Feature{Name: cninodev1.SecurityGroupsForPods}
	config := func(name string) cninodev1.Feature {
		return cninodev1.Feature{Name: cninodev1.CustomNetworking, Value: name}
	}
	// Each is added behind what is there: so the order is that of writing. The ENIConfig itself may come later.
	eventually(t, "both features, the ENIConfig's first", features(config("default"), trunk))
	w.editNode(func(n *corev1.Node) { n.Labels = map[string]string{"vpc.amazonaws.com/externalEniConfig": "other"} })
	eventually(t, "the other ENIConfig in the place of the first", features(trunk, config("other")))
}
