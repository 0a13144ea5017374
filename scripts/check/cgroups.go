package main

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
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
		var below []string
		busy := false
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return err
			}
			below = append(below, path)
			procs, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			busy = busy || err == nil && len(bytes.TrimSpace(procs)) > 0
			return nil
		})
		if err != nil || busy {
			continue // it changes: somebody is at work in it
		}
		for _, d := range slices.Backward(below) {
			err = syscall.Rmdir(d)
		}
		if err == nil {
			removed++
		}
	}
	return removed
}
