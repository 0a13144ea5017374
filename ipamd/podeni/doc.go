// Package podeni is the node's half of security groups for pods: it asks for the trunk ENI and labels the node once the
// trunk is up, finds out which pod a sandbox belongs to, waits for a branch pod's assignment, and tells the branch
// ledger when nothing of a pod is left on the node.
//
// Everything is level-triggered and waits for events. It wires nothing, and it fails closed: a pod that asks for a branch
// ENI gets the one that was assigned to its UID, or none.
package podeni
