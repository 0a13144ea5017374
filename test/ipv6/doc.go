// Package ipv6 plays an IPv6 cluster on the lab: node agent, CNI executables, controller and API server as they ship, an
// instance with a kernel of its own, EC2, IMDS and the VPC of the lab. What it leaves out is the kubelet and a runtime: the
// test calls the CNI chain in their place. It holds tests only.
package ipv6
