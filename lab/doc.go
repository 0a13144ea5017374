// Package lab puts the parts of the lab together: an EC2 region with its VPC, instances in it, and a Kubernetes
// cluster on them with Branchline installed as a user installs it.
//
// The programs under test run unmodified. They are told an EC2 endpoint, a kubeconfig or nothing at all, and find the
// rest as on AWS: by IMDS, DNS, EC2 and the API server. Everything that the lab makes ends with it.
//
// The parts themselves are in the packages below: ec2 and imds (the cloud's API and metadata), vpc (its data plane),
// instance (machines), kube (Kubernetes on them), artifacts (what it is all built from). demo plays the walk-through.
package lab
