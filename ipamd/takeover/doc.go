// Package takeover knows what the AWS VPC CNI's own agent leaves on a node: the checkpoint of its allocations, and its NAT
// and mangle rules. It reads the one and removes the others; what is done with the allocations, and when the rules may go,
// is the agent's to decide. What its CNI executable leaves of single pods is plugins/datapath's.
package takeover
