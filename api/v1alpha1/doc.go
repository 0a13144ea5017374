// Package v1alpha1 holds CNINode, through which a node's agent tells the control plane what it wants (a trunk), as the
// hosted control plane defines it.
//
// It holds nothing of ours: which branch ENI belongs to whom is in package api/ledger/v1alpha1.
//
// +kubebuilder:object:generate=true
// +groupName=vpcresources.k8s.aws
package v1alpha1
