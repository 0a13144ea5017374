// Command egress-cni is the chained CNI executable that gives pods a way out by the other address family.
package main

import "github.com/branchline-cni/branchline/plugins/egress"

func main() { egress.Main() }
