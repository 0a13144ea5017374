// Package kube runs a real Kubernetes on the lab's instances: etcd, the API server, the controller manager and the
// scheduler on one instance (like a hosted control plane), and containerd, kubelet and kube-proxy on each node
// instance, with CoreDNS in the cluster. Nothing of it is a fake.
//
// The package knows instances only as Machines, something that runs programs and that sees some folders of this
// machine under the same paths. It does not make instances, networks or AWS objects, and it does not install a
// network plugin: a node stays NotReady until one puts its configuration into /etc/cni/net.d.
package kube
