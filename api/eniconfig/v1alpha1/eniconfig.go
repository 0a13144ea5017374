package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of ENIConfig.
var GroupVersion = schema.GroupVersion{Group: "crd.k8s.amazonaws.com", Version: "v1alpha1"}

// AddToScheme registers the package's types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &ENIConfig{}, &ENIConfigList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// ENIConfig is named by a label or an annotation of the nodes that it is for, or "default".
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=eniconfigs,singular=eniconfig,scope=Cluster
// +kubebuilder:printcolumn:name="Subnet",type=string,JSONPath=`.spec.subnet`
// +kubebuilder:printcolumn:name="Security groups",type=string,JSONPath=`.spec.securityGroups`
type ENIConfig struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec ENIConfigSpec `json:"spec,omitempty"`
	// +optional
	Status ENIConfigStatus `json:"status,omitempty"`
}

// ENIConfigSpec is where the ENIs are made.
type ENIConfigSpec struct {
	// subnet is a subnet's id, of the nodes' VPC and availability zone.
	Subnet string `json:"subnet"`
	// securityGroups are ids; without any, those of the node's primary ENI are used.
	// +optional
	SecurityGroups []string `json:"securityGroups,omitempty"`
}

// ENIConfigStatus is empty: nothing has ever been written there.
type ENIConfigStatus struct{}

// ENIConfigList is a list of ENIConfigs.
//
// +kubebuilder:object:root=true
type ENIConfigList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []ENIConfig `json:"items"`
}
