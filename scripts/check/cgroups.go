package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

const cgroupRoot = "/sys/fs/cgroup"

// instanceCgroups are the cgroups of lab instances on this machine: below root (/sys/fs/cgroup), or below its hierarchies (version
// 1). An instance whose supervisor is killed, as go test's programs are where a run is interrupted, has nobody to remove them.
func instanceCgroups(root string) (dirs []string) {
	for _, pattern := range []string{"branchline-*", "*/branchline-*"} {
		found, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are good
		dirs = append(dirs, found...)
	}
	return dirs
}

// removeIdle removes those of the cgroups in which no process runs, and says how many. An instance that runs has processes.
func removeIdle(dirs []string) (removed int) {
	for _, dir := range dirs {
		busy := false
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			busy = busy || err == nil && len(bytes.TrimSpace(procs)) > 0
			return nil
		})
		// Where it changes meanwhile, somebody is at work in it.
		if err == nil && !busy && host.RemoveCgroup(dir) == nil {
			removed++
		}
	}
	return removed
}
