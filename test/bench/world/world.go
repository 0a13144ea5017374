// Package world holds the benchmark's network namespaces. None has a name or a file: each lives by a descriptor of this
// process, so that all of them, and every link in them, are gone when the process is, however it ends.
//
// It is not the place for what a contender wants to find in its host namespace (package contender).
package world

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace.
type Namespace struct{ file *os.File }

// Make makes n namespaces, on one thread that ends afterwards.
func Make(n int) ([]*Namespace, error) {
	var made []*Namespace
	err := onThread(func() error {
		for range n {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("make a network namespace (root is needed): %w", err)
			}
			f, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return fmt.Errorf("open the new network namespace: %w", err)
			}
			made = append(made, &Namespace{f})
		}
		return nil
	})
	if err != nil {
		Close(made)
		return nil, err
	}
	return made, nil
}

// Open takes a namespace that is there already, by its path.
func Open(path string) (*Namespace, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open a network namespace: %w", err)
	}
	return &Namespace{f}, nil
}

// Close lets the namespaces go; the kernel removes each, with its links, once no process is in it.
func Close(namespaces []*Namespace) error {
	var errs []error
	for _, n := range namespaces {
		errs = append(errs, n.file.Close())
	}
	return errors.Join(errs...)
}

// FD is the namespace's descriptor.
func (n *Namespace) FD() int { return int(n.file.Fd()) }

// Path leads other processes of this user to the namespace.
func (n *Namespace) Path() string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.FD()) }

// Do runs f on a thread that is in the namespace; processes that f starts are in it, too.
func (n *Namespace) Do(f func() error) error {
	return onThread(func() error {
		if err := netns.Set(netns.NsHandle(n.FD())); err != nil {
			return fmt.Errorf("enter a network namespace: %w", err)
		}
		return f()
	})
}

// Netlink opens a socket in the namespace.
func (n *Namespace) Netlink() (*netlink.Handle, error) {
	h, err := netlink.NewHandleAt(netns.NsHandle(n.FD()), unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("open netlink in a network namespace: %w", err)
	}
	return h, nil
}

// Links counts the namespace's links.
func (n *Namespace) Links() (int, error) {
	h, err := n.Netlink()
	if err != nil {
		return 0, err
	}
	defer h.Close()
	links, err := h.LinkList()
	if err != nil {
		return 0, fmt.Errorf("list the links of a network namespace: %w", err)
	}
	return len(links), nil
}

// onThread runs f on a thread of its own: it is never unlocked, so that the runtime ends it and no other goroutine is
// ever run in its namespace.
func onThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		result <- f()
	}()
	return <-result
}
