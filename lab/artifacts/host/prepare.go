package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
)

// GoVersion is the oldest Go that the sources build with.
const GoVersion = "1.26"

// ErrUnfit is wrapped by the error that names what a machine lacks.
var ErrUnfit = errors.New("this machine lacks what is needed; nothing was changed")

// Lab is what the whole lab needs: virtual machines, namespaces, TAP devices.
// The folders are those that it writes to: the cache and the temporary folder.
func Lab(dirs ...string) Needs {
	return Needs{
		Go: GoVersion, Root: true, Dirs: dirs,
		FreeBytes:   15e9,
		MemoryBytes: 6<<30 - 512<<20, // the kernel keeps some of 6 GiB
		Devices:     []string{"/dev/net/tun"},
		Programs:    []string{"nsenter", "unshare", "apt-get", "dpkg-deb"},
		Packages:    []string{"qemu-system-x86", "kmod", "iproute2"},
	}
}

// Prepare looks at the machine, and when nothing is missing that it can't help,
// installs the packages that are. Both are said on w.
func (n Needs) Prepare(ctx context.Context, w io.Writer) error {
	if problems := n.Look(); len(problems) > 0 {
		lines := make([]string, len(problems))
		for i, p := range problems {
			lines[i] = "\n  " + p.String()
		}
		return fmt.Errorf("%w:%s", ErrUnfit, strings.Join(lines, ""))
	}
	missing, err := n.Uninstalled(ctx)
	if err != nil {
		return err
	}
	if len(missing) > 0 && os.Geteuid() != 0 {
		return fmt.Errorf("%w:\n  these Debian packages must be installed, which needs root: %s", ErrUnfit, strings.Join(missing, " "))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, 15*time.Minute, errors.New("installing took longer than 15 minutes"))
	defer cancel()
	return Install(ctx, w, missing)
}

// Prepare does Lab(...).Prepare for the cache and the temporary folder: all that
// a program that runs the lab has to call.
func Prepare(ctx context.Context, w io.Writer) error {
	cache, err := artifacts.Open()
	if err != nil {
		return err
	}
	return Lab(cache.Dir(), os.TempDir()).Prepare(ctx, w)
}
