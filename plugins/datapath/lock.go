package datapath

import (
	"context"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Lock serialises the executables that work on the same names: a sandbox's late DEL and the ADD of the next sandbox of
// the same pod, or of the next pod on the same VLAN. Without it a DEL could look at a link, see its own, and then
// delete what an ADD has put in its place meanwhile. Executables that work on different pods never wait for each other.
//
// It is one file with one byte range per name (open file description locks, fcntl(2)): the kernel frees them with the
// process, and there is nothing to collect.
type Lock struct{ file *os.File }

// OpenLock opens the lock file, making it and its directory (0755) when missing.
func OpenLock(path string) (*Lock, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of the lock file %s: %w", path, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock file %s: %w", path, err)
	}
	return &Lock{f}, nil
}

// Close frees everything that is locked.
func (l *Lock) Close() error { return l.file.Close() }

// podRange starts the ranges of pods; below it are the VLAN ids'. hostRange is for the whole node's settings.
const (
	podRange  = 1 << 16
	hostRange = 1<<16 - 1
)

// Pod waits until no other executable works on the host veth of this pod. Lock the pod before the VLAN id, never after.
// A further interface's veth is locked by FurtherPodName, after the pod and by number: another pod may have the name.
func (l *Lock) Pod(ctx context.Context, namespace, name string) error {
	sum := sha1.Sum([]byte(namespace + "." + name))
	return l.wait(ctx, podRange+int64(binary.BigEndian.Uint32(sum[:4])), "pod "+namespace+"/"+name)
}

// VLAN waits until no other executable works on this VLAN id.
func (l *Lock) VLAN(ctx context.Context, id int) error {
	return l.wait(ctx, int64(id), VLANLinkName(id))
}

// Host waits until no other executable decides on settings of the whole node. Lock it last.
func (l *Lock) Host(ctx context.Context) (release func(), err error) {
	if err := l.wait(ctx, hostRange, "the node's settings"); err != nil {
		return nil, err
	}
	return func() {
		// Where it fails, closing the file frees it.
		_ = unix.FcntlFlock(l.file.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Whence: io.SeekStart, Start: hostRange, Len: 1})
	}, nil
}

// All waits until no other executable works on anything of any pod, and keeps them from it.
func (l *Lock) All(ctx context.Context) error {
	return l.waitRange(ctx, 0, 0, "this node's pods") // a length of 0 reaches to the end
}

func (l *Lock) wait(ctx context.Context, offset int64, what string) error {
	return l.waitRange(ctx, offset, 1, what)
}

func (l *Lock) waitRange(ctx context.Context, offset, length int64, what string) error {
	// By the raw connection, which keeps the descriptor from being closed, and its number used again, under a waiter.
	raw, err := l.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("lock %s: %w", what, err)
	}
	acquire := func(cmd int) (err error) {
		flock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: offset, Len: length}
		closed := raw.Control(func(fd uintptr) {
			for {
				if err = unix.FcntlFlock(fd, cmd, &flock); err != unix.EINTR {
					return
				}
			}
		})
		if closed != nil {
			return closed
		}
		return err
	}
	err = acquire(unix.F_OFD_SETLK)
	if err == nil {
		return nil
	}
	if err != unix.EAGAIN && err != unix.EACCES {
		return fmt.Errorf("lock %s: %w", what, err)
	}
	// A thread blocked in F_OFD_SETLKW can't be called back; past the deadline it is left to end with the process.
	done := make(chan error, 1)
	go func() { done <- acquire(unix.F_OFD_SETLKW) }()
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("lock %s: %w", what, err)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for another ADD or DEL that works on %s: %w", what, context.Cause(ctx))
	}
}
