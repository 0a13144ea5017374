package ipamd

import (
	"errors"
	"path/filepath"
	"syscall"
)

// diskRemedy is what people can do about a file that can't be written.
func diskRemedy(err error) string {
	switch {
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "it is full: free space or inodes there"
	case errors.Is(err, syscall.EROFS):
		return "it is read-only: the kernel makes a file system so after errors of its disk (see the kernel's log); mount it writable, or replace the node"
	}
	return "look at the node's disk and the kernel's log"
}

// notWritten tells people that allocations can't be written. Until they can no pod gets an address; those that run go on, and
// end.
func (a *Agent) notWritten(err error) {
	if a.metrics != nil { // it is made last
		a.metrics.failed("store")
	}
	dir := filepath.Dir(a.opt.StatePath)
	a.opt.Log.Error("the allocations can't be written: no pod gets an address until they can, pods that run go on and end; it is tried again", "file", a.opt.StatePath, "error", err)
	a.events.Node("AllocationsNotWritten", "no pod of this node gets an address, as the file system of %s does not take the node agent's file: %s (%v); pods that run are not touched", dir, diskRemedy(err), err)
}

// conflistNotWritten tells people why the node does not become ready.
func (a *Agent) conflistNotWritten(err error) {
	a.metrics.failed("conflist")
	a.opt.Log.Error("the CNI configuration can't be written; it is tried again", "error", err)
	a.events.Node("ConfigurationNotWritten", "the node can't become ready, as the file system of the CNI configuration does not take it: %s (%v)", diskRemedy(err), err)
}
