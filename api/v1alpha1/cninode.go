package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of CNINode.
var GroupVersion = schema.GroupVersion{Group: "vpcresources.k8s.aws", Version: "v1alpha1"}

// AddToScheme registers the package's types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &CNINode{}, &CNINodeList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Finalizer is on each CNINode until the controller has let go of it.
const Finalizer = "networking.k8s.aws/resource-cleanup"

// StampsAnnotation is on the CNINodes of a control plane whose webhook leaves its decision on each pod (policy.StampKey). Its
// value is the form of the stamps, StampsForm. EKS's control plane has neither.
const (
	StampsAnnotation = "branchline.dev/stamps-pods"
	StampsForm       = "v1"
)

// FeatureName is what an agent asks the control plane for.
// +kubebuilder:validation:Enum=SecurityGroupsForPods;CustomNetworking
type FeatureName string

const (
	// SecurityGroupsForPods asks for a trunk ENI; it has no value.
	SecurityGroupsForPods FeatureName = "SecurityGroupsForPods"
	// CustomNetworking's value is the name of the ENIConfig that the node's ENIs are made after.
	CustomNetworking FeatureName = "CustomNetworking"
)

// Feature is one wish of the node's agent.
type Feature struct {
	Name FeatureName `json:"name,omitempty"`
	// +optional
	Value string `json:"value,omitempty"`
}

// CNINode is made by the controller for each node that it manages, under the node's name; the agent only adds features.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=cninodes,singular=cninode,scope=Cluster,shortName=cnd
// +kubebuilder:printcolumn:name="Features",type=string,JSONPath=`.spec.features`,description="The features that the node's agent asks for"
type CNINode struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec   CNINodeSpec   `json:"spec,omitempty"`
	Status CNINodeStatus `json:"status,omitempty"`
}

// CNINodeSpec holds the agent's wishes and the tags of the node's ENIs.
type CNINodeSpec struct {
	// +optional
	Features []Feature `json:"features,omitempty"`
	// tags are on each ENI that the controller makes for the node from now on. Those that EC2 does not take (keys that begin
	// with aws:, or are too long, more than 40) are left out.
	// +optional
	Tags map[string]string `json:"tags,omitempty"`
}

// CNINodeStatus is empty: nothing has ever been written there.
type CNINodeStatus struct{}

// Has says whether the agent asks for the feature, and the value that it gave.
func (n *CNINode) Has(name FeatureName) (value string, ok bool) {
	for _, f := range n.Spec.Features {
		if f.Name == name {
			return f.Value, true
		}
	}
	return "", false
}

// Stamps says whether the control plane stamps its decisions on pods, in the form that this version reads.
func (n *CNINode) Stamps() bool { return n.Annotations[StampsAnnotation] == StampsForm }

// CNINodeList is a list of CNINodes.
//
// +kubebuilder:object:root=true
type CNINodeList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []CNINode `json:"items"`
}
