// Package demo plays the walk-through of security groups for pods in the lab, step by step, and keeps the evidence.
//
// Evidence is what programs that are not ours print: kubectl, the AWS CLI, PostgreSQL, psql, ip, tcpdump. Each
// command and its output goes into a numbered file of the evidence folder and, shortened, to the reader; each claim
// is checked against such an output, and a claim that is not seen in time ends the walk-through with an error.
//
// The package decides nothing about the product and reads no state of its parts.
package demo
