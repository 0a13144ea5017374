// Package placement decides what of EC2 serves this node's regular pods: in which subnet and with which security groups
// the next ENI is made, which of the attached ENIs give addresses, and which of them the agent keeps its hands off.
//
// It is pure: it asks neither EC2 nor the API server, and remembers nothing. How many addresses there should be is
// package pool's.
package placement
