package guest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Root says how an instance's root file system differs from the machine's, of which it is a copy-on-write view: what is
// written to it is lost with the instance, but for StateDir.
type Root struct {
	// StateDir is writable and shared with the supervisor, at the same path inside and outside.
	StateDir string `json:"stateDir"`
	// Fresh lists folders that the instance has of its own: empty, writable, in memory; there also if the machine has none.
	Fresh []string `json:"fresh"`
	// Mask lists files and folders that the instance sees empty if the machine has them.
	Mask []string `json:"mask"`
	// Keep lists paths beneath fresh or masked folders that stay visible, read-only.
	Keep []string `json:"keep"`
}

// under tells whether path is dir or lies in it.
func under(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// keepsBeneath returns those of keep that a mask would hide, outermost first, each once, none in another.
func keepsBeneath(mask, keep []string) []string {
	var out []string
	for _, k := range keep {
		k = filepath.Clean(k)
		if slices.ContainsFunc(mask, func(m string) bool { return under(k, filepath.Clean(m)) }) {
			out = append(out, k)
		}
	}
	return outermost(out)
}

func outermost(paths []string) []string {
	paths = slices.Clone(paths)
	slices.Sort(paths)
	var out []string
	for _, p := range paths {
		if !slices.ContainsFunc(out, func(o string) bool { return under(p, o) }) {
			out = append(out, p)
		}
	}
	return out
}

func mount(source, target, fstype string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, fstype, flags, data); err != nil {
		what := fstype
		if what == "" {
			what = source
		}
		return fmt.Errorf("mount %s on %s: %w", what, target, err)
	}
	return nil
}

// overlayRoot makes at work/new a writable view of lower whose changes are kept in memory.
func overlayRoot(work, lower, size string) (string, error) {
	if err := mount("root", work, "tmpfs", 0, "mode=0755,size="+size); err != nil {
		return "", err
	}
	upper, scratch, root := filepath.Join(work, "upper"), filepath.Join(work, "scratch"), filepath.Join(work, "new")
	for _, d := range []string{upper, scratch, root, filepath.Join(work, "keep")} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return "", err
		}
	}
	return root, mount("root", root, "overlay", 0, fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", lower, upper, scratch))
}

// hide masks what r asks for in the root file system at root, and puts back what it keeps. keepDir is a scratch folder.
func (r Root) hide(root, keepDir string) error {
	mask := outermost(append(slices.Clone(r.Mask), r.Fresh...))
	for _, f := range r.Fresh {
		if err := os.MkdirAll(clean(root, f), 0o755); err != nil {
			return fmt.Errorf("make folder %s of the instance: %w", f, err)
		}
	}
	kept := keepsBeneath(mask, r.Keep)
	stash := make([]string, len(kept))
	for i, k := range kept {
		st, err := os.Stat(clean(root, k))
		if err != nil {
			return fmt.Errorf("keep %s visible in the instance: %w", k, err)
		}
		stash[i] = filepath.Join(keepDir, strconv.Itoa(i))
		if err := mountPoint(stash[i], st.IsDir()); err != nil {
			return err
		}
		if err := mount(clean(root, k), stash[i], "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return err
		}
	}
	empty := filepath.Join(keepDir, "empty")
	if err := os.WriteFile(empty, nil, 0o444); err != nil {
		return err
	}
	for _, m := range mask {
		if err := hideOne(clean(root, m), empty); err != nil {
			return err
		}
	}
	for i, k := range kept {
		st, err := os.Stat(stash[i])
		if err != nil {
			return err
		}
		target := clean(root, k)
		if err := mountPoint(target, st.IsDir()); err != nil {
			return err
		}
		if err := mount(stash[i], target, "", unix.MS_MOVE, ""); err != nil {
			return err
		}
	}
	return nil
}

func hideOne(path, empty string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.IsDir():
		return mount("masked", path, "tmpfs", 0, fmt.Sprintf("mode=%o", st.Mode().Perm()|uint32Sticky(st)))
	case st.Mode().IsRegular():
		return mount(empty, path, "", unix.MS_BIND, "")
	default: // a link: what it leads to is masked where that is asked for
		return nil
	}
}

func uint32Sticky(st os.FileInfo) os.FileMode {
	if st.Mode()&os.ModeSticky != 0 {
		return 0o1000
	}
	return 0
}

// mountPoint makes path a folder, or a file, that something can be mounted on.
func mountPoint(path string, dir bool) error {
	if dir {
		return os.MkdirAll(path, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDONLY, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
}

// mountInfo is a line of /proc/self/mountinfo (proc(5)).
type mountInfo struct {
	Path, FSType, Options string
}

// parseMountInfo reads the text of /proc/self/mountinfo. Lines that it can't make sense of are an error.
func parseMountInfo(text string) ([]mountInfo, error) {
	var out []mountInfo
	for line := range strings.Lines(text) {
		head, tail, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
		h, t := strings.Fields(head), strings.Fields(tail)
		if !ok || len(h) < 6 || len(t) < 2 {
			return nil, fmt.Errorf("mountinfo line %q has not the fields of proc(5)", line)
		}
		m := mountInfo{Path: unescapeMount(h[4]), FSType: t[0]}
		if len(t) > 2 {
			m.Options = t[2]
		}
		out = append(out, m)
	}
	return out, nil
}

// unescapeMount undoes the kernel's octal escapes of blanks, backslashes and line feeds.
func unescapeMount(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func ownMounts() ([]mountInfo, error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseMountInfo(string(b))
}
