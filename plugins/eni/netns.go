package eni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/containernetworking/cni/pkg/types"
	"golang.org/x/sys/unix"
)

// openNetns opens the sandbox's network namespace, or says why it isn't one. skel itself compares it with ours only
// after ADD has run, which would be too late.
func openNetns(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, types.NewError(types.ErrUnknownContainer, fmt.Sprintf("CNI_NETNS: %s does not exist: the sandbox is gone", path), "")
	}
	if err != nil {
		return nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %v", err), "")
	}
	if err := checkNetns(f); err != nil {
		f.Close()
		return nil, types.NewError(types.ErrInvalidNetNS, fmt.Sprintf("CNI_NETNS: %s %v", path, err), "")
	}
	return f, nil
}

func checkNetns(f *os.File) error {
	var fsType unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &fsType); err != nil {
		return fmt.Errorf("can't be examined: %w", err)
	}
	if fsType.Type != unix.NSFS_MAGIC {
		return errors.New("is not a namespace (a stale path, left by a sandbox of before the node's reboot?)")
	}
	if kind, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE); err != nil || kind != unix.CLONE_NEWNET {
		return errors.New("is a namespace, but not a network namespace")
	}
	own, err := os.Stat("/proc/thread-self/ns/net")
	if err != nil {
		return fmt.Errorf("can't be compared with the host's: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("can't be examined: %w", err)
	}
	if os.SameFile(own, info) {
		return errors.New("is the host's own network namespace")
	}
	return nil
}
