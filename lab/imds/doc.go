// Package imds is the instance metadata service of one lab instance, version 2 only: a token first, then a tree of keys.
// It serves what its View shows (lab/ec2 has one per instance) and keeps no state but the tokens. How late an attached
// ENI shows is the View's business; failures of the service itself are scripted by Faults.
package imds
