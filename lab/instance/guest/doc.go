// Package guest is the lab's agent inside an instance: PID 1 of a VM or of a namespace instance.
//
// It prepares the instance's root file system, loads kernel modules, reaps orphans, runs processes and configures
// links on behalf of the supervisor outside, with which it speaks one JSON document per line over a stream: a
// virtio-serial port in a VM, an inherited socket in a namespace. Both kinds of instance run the same code from the
// moment that their root file system stands.
//
// It is not part of what an instance of EC2 has: nothing under test may talk to it, and it trusts its supervisor fully.
package guest
