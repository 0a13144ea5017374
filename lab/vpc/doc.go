// Package vpc is the data plane of a VPC, in user space: a Fabric with one port per elastic network interface (ENI),
// over which Ethernet frames go in and out.
//
// It does what AWS does between two instances' network cards: answers ARP (a broadcast reaches nobody), serves DHCP,
// routes by address to the owning ENI, turns 802.1Q tags on a trunk's port into branch ENIs and back, checks sources and
// destinations, applies stateful security groups on both sides, answers VPC services (IMDS, DNS, the EC2 endpoint)
// over the ENI itself, and writes flow log records. What it drops it counts and can explain (Fabric.Drops).
//
// It is not a switch and not a router for anything beyond the VPC: a packet to an address that no ENI owns is dropped.
// It holds no EC2 state: lab/ec2 does, and hands a whole Topology to Fabric.Apply after each change.
//
// Forwarding is decided first (fabricState.forward: a function of the compiled topology, the tracked flows, the time and
// one frame) and done afterwards (Fabric.receive writes to the ports).
//
// # Where it follows AWS, and where it is simpler
//
//   - The security groups of a sender and of a receiver are both checked, for packets between two ENIs of one instance
//     too. Tracked flows survive the removal of the rule or group that let them in, until they close or idle out.
//     AWS leaves flows untracked that are let in and out by rules for all addresses; here every flow is tracked.
//   - Security groups are not applied to the services (on AWS they are not for IMDS and DNS, but they are for an
//     interface endpoint such as EC2's), nor are the services' packets in the flow log.
//   - ARP's sender address is not checked, only its MAC: Linux names another interface's address when the asking
//     one has none, as a branch ENI's VLAN link has none, and AWS answers that too.
//   - A packet through the subnet's gateway loses one from its TTL, as by any router. AWS's hides itself. When none is left
//     the packet is dropped without an ICMP answer.
//   - A fragment without ports is taken for part of the flow that its first fragment named; when the first was not seen
//     it is dropped.
package vpc
