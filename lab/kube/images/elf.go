package images

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/branchline-cni/branchline/build/image"
)

// ErrNoLibrary is returned when a shared library that a program needs is not among the unpacked packages.
var ErrNoLibrary = errors.New("the shared library is in none of the unpacked packages")

// programFiles are a dynamically linked program of the file system below root and everything that it needs to run:
// its loader and the shared libraries, and theirs.
func programFiles(root, program, target string) ([]image.File, error) {
	real, err := resolve(root, program)
	if err != nil {
		return nil, err
	}
	files := []image.File{{Path: target, From: real}}
	loader, err := interpreter(real)
	if err != nil {
		return nil, err
	}
	found := map[string]bool{path.Base(loader): true} // libraries name the loader too
	from, err := resolve(root, loader)
	if err != nil {
		return nil, err
	}
	files = append(files, image.File{Path: loader, From: from})

	queue := []string{real}
	for len(queue) > 0 {
		needed, err := libraries(queue[0])
		if err != nil {
			return nil, err
		}
		user := queue[0]
		queue = queue[1:]
		for _, name := range needed {
			if found[name] {
				continue
			}
			found[name] = true
			at, from, err := findLibrary(root, name)
			if err != nil {
				return nil, fmt.Errorf("find what %s needs: %w", strings.TrimPrefix(user, root), err)
			}
			files = append(files, image.File{Path: at, From: from})
			queue = append(queue, from)
		}
	}
	return files, nil
}

// findLibrary looks in the folders that Debian's loader looks in.
func findLibrary(root, name string) (at, from string, err error) {
	for _, pattern := range []string{"lib/*-linux-gnu", "usr/lib/*-linux-gnu", "lib", "usr/lib"} {
		dirs, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return "", "", fmt.Errorf("look for libraries below %s: %w", root, err)
		}
		for _, dir := range dirs {
			rel, err := filepath.Rel(root, filepath.Join(dir, name))
			if err != nil {
				return "", "", err
			}
			from, err := resolve(root, rel)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			return "/" + rel, from, err
		}
	}
	return "", "", fmt.Errorf("%s: %w", name, ErrNoLibrary)
}

// resolve is the path of the regular file that name stands for where root is the root folder: an absolute link of an
// unpacked package means a file of the packages, not one of this machine.
func resolve(root, name string) (string, error) {
	name = path.Clean("/" + name)
	for range 16 {
		full := filepath.Join(root, name)
		info, err := os.Lstat(full)
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			return full, nil
		}
		link, err := os.Readlink(full)
		if err != nil {
			return "", err
		}
		if !path.IsAbs(link) {
			link = path.Join(path.Dir(name), link)
		}
		name = path.Clean("/" + link)
	}
	return "", fmt.Errorf("resolve %s below %s: too many links", name, root)
}

func interpreter(program string) (string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("read program %s: %w", program, err)
	}
	defer f.Close()
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b, err := io.ReadAll(p.Open())
		if err != nil {
			return "", fmt.Errorf("read the loader's name in %s: %w", program, err)
		}
		return strings.TrimRight(string(b), "\x00"), nil
	}
	return "", fmt.Errorf("read program %s: it names no loader, so it is not dynamically linked", program)
}

func libraries(file string) ([]string, error) {
	f, err := elf.Open(file)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	defer f.Close()
	names, err := f.ImportedLibraries()
	if err != nil {
		return nil, fmt.Errorf("read the libraries that %s needs: %w", file, err)
	}
	return names, nil
}
