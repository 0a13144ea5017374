// Package hostnet keeps the host-wide part of the node's routing as it has to be: the rule that looks up the node's own
// pods, the routing table of each secondary ENI, and the place of the kernel's local rule. What to change is a pure
// function of what is wanted and what is there; applying it is a short loop over netlink.
//
// It is not the place for what belongs to one pod: the CNI executable makes that and takes it away.
package hostnet
