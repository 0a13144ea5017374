package datapath

import (
	"errors"
	"fmt"
	"io/fs"
	"runtime"

	"golang.org/x/sys/unix"
)

// DisableIPv6 turns IPv6 off in the pod (DISABLE_POD_V6): for the links that are there and for those that come. Nothing is
// to be undone, as the namespace goes with its sandbox.
type DisableIPv6 struct{}

func (DisableIPv6) object() string   { return "IPv6 of the pod" }
func (s DisableIPv6) String() string { return "turn off " + s.object() }

// podIPv6Off are the settings of the pod's namespace. The last one is of the only link that is older than the second.
var podIPv6Off = []string{"all", "default", "lo"}

// disableIPv6 does it: these settings have no netlink. A kernel without IPv6 has none of them.
func disableIPv6(podNS int) error {
	return inNamespace(podNS, func() error {
		for _, link := range podIPv6Off {
			if err := writeSetting("/proc/sys/net/ipv6/conf/"+link+"/disable_ipv6", "1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	})
}

// inNamespace runs f in another network namespace. The thread is in its own again afterwards, or never used again.
func inNamespace(netns int, f func() error) error {
	runtime.LockOSThread()
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the own network namespace: %w", err)
	}
	defer unix.Close(own)
	if err := unix.Setns(netns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return err
	}
	err = f()
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("return to the own network namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}
