package artifacts

import (
	"fmt"
	"io"
	"io/fs"
)

// archive writes the "new ASCII" cpio format (magic 070701), which the Linux
// kernel unpacks as an initramfs: Documentation/driver-api/early-userspace.
type archive struct {
	w     io.Writer
	inode int
	err   error
}

func newArchive(w io.Writer) *archive { return &archive{w: w} }

const (
	cpioDir  = 0o040000
	cpioFile = 0o100000
)

func (a *archive) dir(name string) { a.entry(name, cpioDir|0o755, nil) }

func (a *archive) file(name string, mode fs.FileMode, content []byte) {
	a.entry(name, cpioFile|int(mode.Perm()), content)
}

// close writes the trailer and returns the first error of all writes.
func (a *archive) close() error {
	a.inode = -1 // the trailer's inode is 0
	a.entry("TRAILER!!!", 0, nil)
	return a.err
}

func (a *archive) entry(name string, mode int, content []byte) {
	if a.err != nil {
		return
	}
	a.inode++
	links := 1
	if mode&cpioDir != 0 {
		links = 2
	}
	// Fields: inode, mode, uid, gid, links, mtime, size, device and its target
	// (major, minor each), length of the name with its NUL, checksum (unused).
	header := "070701"
	for _, v := range []int{a.inode, mode, 0, 0, links, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0} {
		header += fmt.Sprintf("%08X", v)
	}
	a.write([]byte(header + name + "\x00"))
	a.write(content)
}

// write writes b and pads it to a multiple of four. The header's length (110)
// counts with the name, so both are written in one go.
func (a *archive) write(b []byte) {
	if a.err != nil {
		return
	}
	if _, a.err = a.w.Write(b); a.err != nil {
		return
	}
	if rest := len(b) % 4; rest != 0 {
		_, a.err = a.w.Write(make([]byte, 4-rest))
	}
}
