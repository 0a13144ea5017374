package rpc

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"github.com/branchline-cni/branchline/rpc/unary"
)

// Listen creates the agent's socket at path: in a private directory first, with mode 0600, and only then published
// under its name by rename. So nobody can connect before the mode is right, and a socket left by an agent that was
// killed is replaced without a moment in which no socket is there. The parent directory is made (0755) when missing and
// must belong to root and be writable by nobody else.
//
// Closing the listener removes the name again, unless another agent has taken it meanwhile.
func Listen(path string) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := ensureDirectory(dir); err != nil {
		return nil, err
	}
	private, err := os.MkdirTemp(dir, ".new-")
	if err != nil {
		return nil, fmt.Errorf("make a private directory for the socket %s: %w", path, err)
	}
	defer os.RemoveAll(private)
	born := filepath.Join(private, "s")
	if len(born) > unary.MaxSocketPath || len(path) > unary.MaxSocketPath {
		return nil, fmt.Errorf("socket path %s: with a temporary name beside it longer than the %d bytes that unix sockets allow", path, unary.MaxSocketPath)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: born, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", born, err)
	}
	l.SetUnlinkOnClose(false)
	published := false
	defer func() {
		if !published {
			l.Close()
		}
	}()
	if err := os.Chmod(born, 0o600); err != nil {
		return nil, fmt.Errorf("restrict the socket %s to its owner: %w", born, err)
	}
	info, err := os.Lstat(born)
	if err != nil {
		return nil, fmt.Errorf("look at the new socket %s: %w", born, err)
	}
	if old, err := os.Lstat(path); err == nil && old.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s exists and is not a socket: remove it, the agent listens there", path)
	}
	if err := os.Rename(born, path); err != nil {
		return nil, fmt.Errorf("publish the socket as %s: %w", path, err)
	}
	published = true
	return &listener{UnixListener: l, path: path, info: info}, nil
}

func ensureDirectory(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the socket's directory %s: %w", dir, err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("look at the socket's directory %s: %w", dir, err)
	}
	owner := info.Sys().(*syscall.Stat_t).Uid
	// As root only root's own directory will do; elsewhere (a test run by a user) the caller's own.
	if owner != 0 && int(owner) != os.Geteuid() || os.Geteuid() == 0 && owner != 0 || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("socket directory %s: owner uid %d, mode %04o; it must belong to root and be writable by nobody else (0755)", dir, owner, info.Mode().Perm())
	}
	return nil
}

type listener struct {
	*net.UnixListener
	path string
	info fs.FileInfo
	once sync.Once
}

func (l *listener) Close() error {
	err := l.UnixListener.Close()
	l.once.Do(func() {
		now, statErr := os.Lstat(l.path)
		if statErr != nil || !os.SameFile(now, l.info) {
			return
		}
		if rmErr := os.Remove(l.path); rmErr != nil && !errors.Is(rmErr, fs.ErrNotExist) {
			err = errors.Join(err, fmt.Errorf("remove the socket %s: %w", l.path, rmErr))
		}
	})
	return err
}

// Addr names the published path, not the private one that the socket was born at.
func (l *listener) Addr() net.Addr { return &net.UnixAddr{Name: l.path, Net: "unix"} }
