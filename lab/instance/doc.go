// Package instance makes EC2 instances of the lab: virtual machines (QEMU, ENI attach is the hot-plug of a network
// card) and namespace instances (their own network, mount, PID, UTS, IPC and cgroup namespaces on the machine's kernel,
// ENI attach is a TAP device).
//
// Both show the machine's own files as a copy-on-write view with the machine's state and secrets masked, share one
// writable folder with the supervisor, and are driven through the same agent (package guest). Whatever ends this
// process also ends its instances.
//
// It knows neither EC2's API nor the VPC: the caller says which ENI is attached where, and carries the frames of the
// links that it gets back.
package instance
