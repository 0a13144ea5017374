// Package install puts things onto the host: the executables and the node-wide kernel settings (the init container,
// which is privileged and ends at once), and the CNI configuration (the running agent, once it can serve). Files appear
// whole or not at all: the kubelet and the runtime read them at any moment.
package install
