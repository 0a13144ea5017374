// Package branch gives pods their branch ENIs and takes them back. Pods brings each pod that asks for one to a branch ENI
// on its instance's trunk by the cold path (create, permit, associate, annotate); CleanUp takes slots whose pods have
// ended through confirmation, cool-down and deletion; Sweep deletes what no ledger knows of.
//
// Every intent is in the ledger before EC2 is called, so each reconciler can be cut off at any line and starts over from
// the ledger. Making trunks, and noticing that an instance is gone, is package trunk's.
package branch
