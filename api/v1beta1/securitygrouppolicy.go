package v1beta1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// GroupVersion of SecurityGroupPolicy.
var GroupVersion = schema.GroupVersion{Group: "vpcresources.k8s.aws", Version: "v1beta1"}

// AddToScheme registers the package's types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &SecurityGroupPolicy{}, &SecurityGroupPolicyList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// SecurityGroupPolicy gives the pods of its namespace that it selects their own EC2 security groups.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=securitygrouppolicies,singular=securitygrouppolicy,scope=Namespaced,shortName=sgp
// +kubebuilder:printcolumn:name="Security-Group-Ids",type=string,JSONPath=`.spec.securityGroups.groupIds`,description="The security groups that selected pods get"
type SecurityGroupPolicy struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec SecurityGroupPolicySpec `json:"spec,omitempty"`
}

// SecurityGroupPolicySpec says whom the policy selects and what they get. With both selectors, a pod has to match both;
// a selector that is present and empty matches every pod; with neither, the policy is ignored.
type SecurityGroupPolicySpec struct {
	// podSelector selects by the pod's labels.
	// +optional
	PodSelector *metav1.LabelSelector `json:"podSelector,omitempty"`
	// serviceAccountSelector selects by the labels of the pod's ServiceAccount.
	// +optional
	ServiceAccountSelector *metav1.LabelSelector `json:"serviceAccountSelector,omitempty"`
	// securityGroups are what selected pods get.
	// +optional
	SecurityGroups GroupIDs `json:"securityGroups,omitempty"`
}

// GroupIDs lists EC2 security groups of the cluster's VPC.
type GroupIDs struct {
	// groupIds are security group ids, sg-…. EC2's quota per network interface (5 unless raised, at most 16) limits the
	// union over all policies that match a pod.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:MinLength=1
	// +optional
	Groups []string `json:"groupIds,omitempty"`
}

// SecurityGroupPolicyList is a list of policies.
//
// +kubebuilder:object:root=true
type SecurityGroupPolicyList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []SecurityGroupPolicy `json:"items"`
}
