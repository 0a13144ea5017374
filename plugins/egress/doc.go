// Package egress is the chained CNI plugin egress-cni: pods of an IPv6 cluster reach IPv4 destinations, and pods of an
// IPv4 cluster IPv6 destinations, from the node's own address.
//
// The pod gets a second interface with an address that means nothing outside its node (169.254.172.0/22 or
// fd00::ac:00/118, by host-local's files), and a default route of that family. One nftables rule per family and node
// translates what leaves, and another drops new connections towards these addresses: it is a way out and no way in, also
// not for the node's other pods, whose network policies hold for their own interface only.
//
// A pod is left as it is when it has the family already, and when it has a branch ENI: what it sent would leave by the
// node's ENI, past its own security groups.
//
// It is not the place for source NAT of the cluster's own family (ipamd/hostnet).
package egress
