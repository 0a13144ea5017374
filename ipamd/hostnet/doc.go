// Package hostnet keeps the host-wide part of the node's routing as it has to be: the place of the kernel's local rule,
// the rules that send packets past the block of strict branch pods, what stays node-local, the tables of this node's
// pods, the table and the mark of each ENI, and the nftables tables: of those marks, of source NAT and NodePort's answers,
// and of the guard around egress-cni's addresses. What to change is a pure function of what is wanted and what is there;
// applying it is a short loop over netlink.
//
// It is not the place for what belongs to one pod: the CNI executable makes that and takes it away. Nor does it choose
// endpoints of Services: that is kube-proxy's.
package hostnet
