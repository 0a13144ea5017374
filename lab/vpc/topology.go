package vpc

import (
	"net"
	"net/netip"
)

// Topology is everything of a VPC that forwarding depends on. It is a value: whoever owns the state (lab/ec2) makes a
// new one after each change and hands it to Fabric.Apply, which replaces the old one in one step.
type Topology struct {
	// CIDRs of the VPC. Their base + 2 is the VPC's DNS server.
	CIDRs   []netip.Prefix
	Subnets []Subnet
	ENIs    []ENI
	Groups  []SecurityGroup
}

// Subnet is a range of the VPC. Its base + 1 is its router.
type Subnet struct {
	ID   string // subnet-…
	CIDR netip.Prefix
}

// ENI is an elastic network interface as the data plane sees it.
type ENI struct {
	ID       string // eni-…
	SubnetID string
	MAC      net.HardwareAddr
	// Addresses holds every private IPv4 address, the primary one first, and the IPv6 addresses.
	Addresses []netip.Addr
	// Prefixes are IPv6 prefixes, /80 each: all their addresses are the ENI's.
	Prefixes []netip.Prefix
	// Groups are the ids of the security groups; the rules of all of them apply together.
	Groups []string
	// SourceDestCheck drops frames whose source (out) or destination (in) is no address of the ENI.
	SourceDestCheck bool
	// InstanceID is empty while the ENI is not attached. A branch ENI is never attached itself.
	InstanceID string
	// TrunkID and VLAN are set for a branch ENI that is associated with a trunk: its frames travel through the
	// trunk's port with this 802.1Q VLAN id.
	TrunkID string
	VLAN    uint16
}

// SecurityGroup is a stateful filter: what a rule lets in or out is answered without a rule of its own.
type SecurityGroup struct {
	ID      string // sg-…
	Ingress []Rule
	Egress  []Rule
}

// Rule allows one protocol and port range to or from one peer. It is EC2's IpPermission with a single peer.
type Rule struct {
	ID string // sgr-…
	// Protocol is an IP protocol number, or -1 for all.
	Protocol int
	// FromPort and ToPort bound the destination port for TCP and UDP. For ICMP they are type and code, -1 for all.
	FromPort, ToPort int
	// Peer is either a CIDR or another security group (one of them is set).
	CIDR  netip.Prefix
	Group string
}
