// Package policyagent is the messages of the contract with the AWS network policy agent, where it listens, and the CNI
// executable's way to call it. What is done with it is said in plugins/eni (the CNI executable calls it) and in ipamd (the
// node agent answers it).
package policyagent

// SocketPath is where the network policy agent listens.
const SocketPath = "/var/run/aws-node/npa.sock"
