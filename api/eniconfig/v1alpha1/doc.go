// Package v1alpha1 holds ENIConfig, by which users of custom networking say in which subnet and with which security groups
// a node's ENIs for pods are made. The kind is the AWS VPC CNI's; on EKS its definition is there already.
//
// +kubebuilder:object:generate=true
// +groupName=crd.k8s.amazonaws.com
package v1alpha1
