package instance

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// bootModules are what the guest agent needs to reach its root file system, its supervisor and its first link. The
// rest is loaded by name from the root file system.
var bootModules = []string{"virtio_pci", "virtiofs", "overlay", "virtio_net", "virtio_console"}

// moduleOrder reads a modules.dep (depmod(8)) and returns the files of the named modules and of all that they need, in an
// order that insmod accepts. A module that the kernel has built in is in builtin (modules.builtin) and left out.
func moduleOrder(dep, builtin string, names []string) ([]string, error) {
	needs := map[string][]string{} // file -> files
	byName := map[string]string{}
	for line := range strings.Lines(dep) {
		file, rest, ok := strings.Cut(strings.TrimSpace(line), ":")
		if !ok {
			continue
		}
		needs[file] = strings.Fields(rest)
		byName[moduleName(file)] = file
	}
	isBuiltin := map[string]bool{}
	for line := range strings.Lines(builtin) {
		isBuiltin[moduleName(strings.TrimSpace(line))] = true
	}
	var order []string
	const visiting, done = 1, 2
	state := map[string]int{}
	var visit func(file string) error
	visit = func(file string) error {
		switch state[file] {
		case done:
			return nil
		case visiting:
			return fmt.Errorf("modules.dep: %s depends on itself", file)
		}
		deps, ok := needs[file]
		if !ok {
			return fmt.Errorf("modules.dep has no line for %s", file)
		}
		state[file] = visiting
		for _, d := range deps {
			if err := visit(d); err != nil {
				return err
			}
		}
		state[file] = done
		order = append(order, file)
		return nil
	}
	for _, n := range names {
		if isBuiltin[n] {
			continue
		}
		file, ok := byName[n]
		if !ok {
			return nil, fmt.Errorf("the kernel has no module %s (modules.dep does not name it)", n)
		}
		if err := visit(file); err != nil {
			return nil, err
		}
	}
	return order, nil
}

// moduleName is the name by which the kernel knows the module in a file: "kernel/net/8021q/8021q.ko.xz" is 8021q.
func moduleName(file string) string {
	name, _, _ := strings.Cut(path.Base(file), ".ko")
	return strings.ReplaceAll(name, "-", "_")
}

// archive writes an initramfs: a cpio archive in the "new ASCII" format (the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	w   *bufio.Writer
	ino int
	err error
}

const (
	modeDir  = 0o040755
	modeFile = 0o100755
	modeChar = 0o020600
)

func newArchive(w io.Writer) *archive { return &archive{w: bufio.NewWriter(w)} }

func (a *archive) entry(name string, mode, rmajor, rminor int, content []byte) {
	if a.err != nil {
		return
	}
	a.ino++
	header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", a.ino, mode, 0, 0, 1, 0, len(content), 0, 0, rmajor, rminor, len(name)+1, 0)
	a.bytes([]byte(header+name+"\x00"), len(header)+len(name)+1)
	a.bytes(content, len(content))
}

// bytes writes b and pads it to the four bytes that the format wants.
func (a *archive) bytes(b []byte, n int) {
	if a.err == nil {
		_, a.err = a.w.Write(b)
	}
	if pad := (4 - n%4) % 4; a.err == nil && pad > 0 {
		_, a.err = a.w.Write(make([]byte, pad))
	}
}

func (a *archive) dir(name string)                  { a.entry(name, modeDir, 0, 0, nil) }
func (a *archive) file(name string, content []byte) { a.entry(name, modeFile, 0, 0, content) }
func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, 0, 0, nil)
	if a.err != nil {
		return a.err
	}
	return a.w.Flush()
}
