// Command aws-cni is the CNI executable that the container runtime runs for each sandbox.
package main

import "github.com/branchline-cni/branchline/plugins/eni"

func main() { eni.Main() }
