// Command aws-cni is the CNI executable that the container runtime runs for each sandbox.
package main

import (
	"runtime"

	"github.com/branchline-cni/branchline/plugins/eni"
)

func main() {
	// The work of one sandbox is one request after the other. More than one processor only makes the runtime wake
	// threads that find nothing to do, on a node that starts many pods at a time.
	runtime.GOMAXPROCS(1)
	// All of it on one thread: a network namespace is a thread's, and who traces this process sees its system calls in
	// their order.
	runtime.LockOSThread()
	eni.Main()
}
