// Package v1alpha1 holds BranchLedger, the durable truth of which VLAN id and branch ENI of an instance belongs to which
// pod. One object per EC2 instance, named by the instance id and owned by nothing, so that it outlives the Node object
// and whatever gets cleaned up with it. The controller writes the spec, the node's agent writes the status.
//
// It holds no transitions: those are package controller/ledger. With the hosted control plane the resource does not exist.
//
// +kubebuilder:object:generate=true
// +groupName=branchline.dev
package v1alpha1
