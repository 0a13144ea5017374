// Package v1beta1 holds SecurityGroupPolicy, the one resource that users of security groups for pods write. Its group,
// names and fields are those of the hosted control plane, so that policies work unchanged with either.
//
// It holds no matching: that is package policy.
//
// +kubebuilder:object:generate=true
// +groupName=vpcresources.k8s.aws
package v1beta1
