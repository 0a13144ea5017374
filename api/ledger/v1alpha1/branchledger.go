package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// GroupVersion of BranchLedger.
var GroupVersion = schema.GroupVersion{Group: "branchline.dev", Version: "v1alpha1"}

// AddToScheme registers the package's types.
func AddToScheme(s *runtime.Scheme) error {
	s.AddKnownTypes(GroupVersion, &BranchLedger{}, &BranchLedgerList{})
	metav1.AddToGroupVersion(s, GroupVersion)
	return nil
}

// Finalizer keeps a ledger until its instance is gone and nothing of it is left in EC2: without the ledger nobody knows
// which branch ENIs running pods are wired with.
const Finalizer = "branchline.dev/instance-cleanup"

// VLAN ids that may be given to branch ENIs.
const (
	MinVLANID = 1
	MaxVLANID = 120
)

// SlotState is where a VLAN id is in its life.
// +kubebuilder:validation:Enum=Creating;Bound;Releasing;Cooling;Deleting;Occupied;Free
type SlotState string

const (
	// Creating: the intent is written; the branch ENI may or may not exist yet. Nothing was shown to the node.
	Creating SlotState = "Creating"
	// Bound: the branch ENI is associated and belongs to the pod, which may know of it.
	Bound SlotState = "Bound"
	// Releasing: the pod has ended; its node has not yet confirmed that nothing of it is left there.
	Releasing SlotState = "Releasing"
	// Cooling: nothing of the pod is left; peers may still have its address in their neighbour and connection tables.
	Cooling SlotState = "Cooling"
	// Deleting: the branch ENI is being disassociated and deleted.
	Deleting SlotState = "Deleting"
	// Occupied: EC2 has something on this VLAN id that the ledger did not put there.
	Occupied SlotState = "Occupied"
	// Free: the VLAN id may be given again. Since is when it was freed. A VLAN id without a slot was never given.
	Free SlotState = "Free"
)

// BranchLedger is one instance's account of VLAN ids.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=branchledgers,singular=branchledger,scope=Cluster
// +kubebuilder:printcolumn:name="Node",type=string,JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Trunk",type=string,JSONPath=`.spec.trunkENIID`
// +kubebuilder:printcolumn:name="Capacity",type=integer,JSONPath=`.spec.capacity`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type BranchLedger struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	Spec BranchLedgerSpec `json:"spec"`
	// +optional
	Status BranchLedgerStatus `json:"status,omitempty"`
}

// CustomNetworking is what the node's ENIConfig says, as the controller read it last.
type CustomNetworking struct {
	// eniConfig is its name.
	ENIConfig string `json:"eniConfig"`
	SubnetID  string `json:"subnetID"`
	// +optional
	SubnetCIDR string `json:"subnetCIDR,omitempty"`
	// subnetIPv6CIDR is empty where the subnet has none.
	// +optional
	SubnetIPv6CIDR string `json:"subnetIPv6CIDR,omitempty"`
}

// Subnet is one with its ranges; IPv6CIDR is empty where it has none.
//
// +kubebuilder:object:generate=false
type Subnet struct{ ID, CIDR, IPv6CIDR string }

// PrimarySubnet is the subnet of the instance's primary interface.
func (s *BranchLedgerSpec) PrimarySubnet() Subnet {
	return Subnet{s.SubnetID, s.SubnetCIDR, s.SubnetIPv6CIDR}
}

// BranchSubnet is the subnet that branch ENIs are made in now.
func (s *BranchLedgerSpec) BranchSubnet() Subnet {
	if n := s.CustomNetworking; n != nil {
		return Subnet{n.SubnetID, n.SubnetCIDR, n.SubnetIPv6CIDR}
	}
	return s.PrimarySubnet()
}

// BranchLedgerSpec is the controller's.
type BranchLedgerSpec struct {
	// nodeName is the Node that the instance was registered as.
	NodeName string `json:"nodeName"`
	// instanceID equals the object's name.
	InstanceID string `json:"instanceID"`
	// +optional
	InstanceType string `json:"instanceType,omitempty"`
	// accountID, vpcID and subnetID are the instance's, as EC2 describes its primary interface; they never change.
	// +optional
	AccountID string `json:"accountID,omitempty"`
	// +optional
	VPCID string `json:"vpcID,omitempty"`
	// +optional
	SubnetID string `json:"subnetID,omitempty"`
	// +optional
	SubnetCIDR string `json:"subnetCIDR,omitempty"`
	// subnetIPv6CIDR is empty where the subnet has none: branch ENIs made in it have no IPv6 address then.
	// +optional
	SubnetIPv6CIDR string `json:"subnetIPv6CIDR,omitempty"`
	// customNetworking is where branch ENIs are made in the place of the primary interface's subnet.
	// +optional
	CustomNetworking *CustomNetworking `json:"customNetworking,omitempty"`
	// trunkENIID is empty until the trunk is made and attached.
	// +optional
	TrunkENIID string `json:"trunkENIID,omitempty"`
	// capacity is how many branch ENIs the instance type can have.
	// +kubebuilder:validation:Minimum=0
	// +optional
	Capacity int32 `json:"capacity,omitempty"`
	// slots holds every VLAN id that was ever given on this instance.
	// +listType=map
	// +listMapKey=vlanID
	// +kubebuilder:validation:MaxItems=120
	// +optional
	Slots []Slot `json:"slots,omitempty"`
}

// Slot is one VLAN id.
type Slot struct {
	// +kubebuilder:validation:Minimum=1
	// +kubebuilder:validation:Maximum=120
	VLANID int32     `json:"vlanID"`
	State  SlotState `json:"state"`
	// since is when the state was entered.
	Since metav1.MicroTime `json:"since"`
	// claim names one attempt to make a branch ENI, so that what a crash left behind is found again.
	// +optional
	Claim string `json:"claim,omitempty"`

	// podUID is whom the slot belongs to, or belonged to while it is released. Empty when free or occupied.
	// +optional
	PodUID types.UID `json:"podUID,omitempty"`
	// +optional
	PodNamespace string `json:"podNamespace,omitempty"`
	// +optional
	PodName string `json:"podName,omitempty"`

	// +optional
	ENIID string `json:"eniID,omitempty"`
	// +optional
	MAC string `json:"mac,omitempty"`
	// +optional
	PrivateIP string `json:"privateIP,omitempty"`
	// +optional
	SubnetCIDR string `json:"subnetCIDR,omitempty"`
	// +optional
	IPv6Address string `json:"ipv6Address,omitempty"`
	// +optional
	SubnetIPv6CIDR string `json:"subnetIPv6CIDR,omitempty"`
	// +listType=atomic
	// +optional
	SecurityGroups []string `json:"securityGroups,omitempty"`
	// +optional
	AssociationID string `json:"associationID,omitempty"`
}

// BranchLedgerStatus is the node agent's.
type BranchLedgerStatus struct {
	// released holds the pods of which nothing is left on the node. The agent drops an entry once no slot of the spec
	// names its pod any more.
	// +listType=map
	// +listMapKey=podUID
	// +optional
	Released []Released `json:"released,omitempty"`
}

// Released is the node's word that nothing of a pod is left on it: no link, no rule, no route.
type Released struct {
	PodUID types.UID `json:"podUID"`
	// +optional
	VLANID int32 `json:"vlanID,omitempty"`
	// +optional
	ENIID string `json:"eniID,omitempty"`
	// +optional
	ReleasedAt metav1.MicroTime `json:"releasedAt,omitempty"`
}

// BranchLedgerList is a list of ledgers.
//
// +kubebuilder:object:root=true
type BranchLedgerList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`

	Items []BranchLedger `json:"items"`
}
