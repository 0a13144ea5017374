package instance

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

// cgroups are the instance's own cgroups, one in each hierarchy that the machine has mounted (version 1, 2 or both).
type cgroups struct {
	dirs []string
}

// cgroupMounts finds the hierarchies in the text of /proc/self/mountinfo: path and whether it is version 2.
func cgroupMounts(mountinfo string) map[string]bool {
	out := map[string]bool{}
	for line := range strings.Lines(mountinfo) {
		head, tail, ok := strings.Cut(line, " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if ok && len(h) >= 5 && len(t) >= 1 && (t[0] == "cgroup" || t[0] == "cgroup2") {
			out[h[4]] = t[0] == "cgroup2"
		}
	}
	return out
}

// makeCgroups makes the instance's cgroups and puts pid into them. What an instance of that name left behind, whose
// supervisor was killed, is removed first.
func makeCgroups(name string, pid int) (*cgroups, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("find cgroup hierarchies: %w", err)
	}
	c := &cgroups{}
	for top, v2 := range cgroupMounts(string(b)) {
		dir := filepath.Join(top, name)
		if v2 {
			delegate(top)
		}
		if err := host.RemoveCgroup(dir); err != nil {
			return c, fmt.Errorf("remove what an earlier instance of this id left (does it still run?): %w", err)
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			return c, fmt.Errorf("make cgroup: %w", err)
		}
		c.dirs = append(c.dirs, dir)
		if !v2 {
			if err := copyCpuset(top, dir); err != nil {
				return c, err
			}
		}
		if err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0o644); err != nil {
			return c, fmt.Errorf("put process %d into cgroup %s: %w", pid, dir, err)
		}
	}
	slices.Sort(c.dirs)
	return c, nil
}

// delegate lets a child of the top cgroup use its controllers, where the machine's own init hasn't. What is refused is
// missed by whoever needs it (the kubelet says which).
func delegate(top string) {
	b, err := os.ReadFile(filepath.Join(top, "cgroup.controllers"))
	if err != nil {
		return
	}
	for _, c := range strings.Fields(string(b)) {
		os.WriteFile(filepath.Join(top, "cgroup.subtree_control"), []byte("+"+c), 0o644)
	}
}

// copyCpuset gives a new cpuset (version 1) its parent's CPUs and memory: empty, it takes no process.
func copyCpuset(parent, dir string) error {
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		b, err := os.ReadFile(filepath.Join(parent, f))
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, f), b, 0o644)
		}
		if err != nil {
			return fmt.Errorf("fill cpuset %s: %w", dir, err)
		}
	}
	return nil
}

// remove takes the cgroups away, deepest first. Their processes are dead already, but a cgroup stays busy until the
// kernel has buried the last; of that it gives no notice in version 1, so it is tried for a while.
func (c *cgroups) remove(ctx context.Context) error {
	if c == nil {
		return nil
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for _, dir := range c.dirs {
		for {
			err := host.RemoveCgroup(dir)
			if err == nil {
				break
			}
			if !errors.Is(err, unix.EBUSY) {
				return err
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("%w: %w", context.Cause(ctx), err)
			}
		}
	}
	return nil
}
