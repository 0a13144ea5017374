package images

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/build/image"
)

// unpackedHost is a folder with a copy of a dynamically linked program of this machine and its libraries, as Debian
// packages would have left it there.
func unpackedHost(t *testing.T, program string) string {
	t.Helper()
	real, err := filepath.EvalSymlinks(program)
	if err != nil {
		t.Fatalf("this machine has no %s: %v", program, err)
	}
	files, err := programFiles("/", real, "/program")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	for _, f := range files {
		b, err := os.ReadFile(f.From)
		if err != nil {
			t.Fatal(err)
		}
		writeTestFile(t, filepath.Join(root, f.Path), b)
	}
	return root
}

func writeTestFile(t *testing.T, path string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestProgramRunsFromTheCollectedFilesAlone(t *testing.T) {
	root := unpackedHost(t, "/bin/bash")
	files, err := programFiles(root, "program", "/usr/bin/program")
	if err != nil {
		t.Fatal(err)
	}
	var loader, libs string
	for _, f := range files {
		if !strings.HasPrefix(f.From, root) {
			t.Errorf("%s comes from %s, outside the unpacked packages", f.Path, f.From)
		}
		switch {
		case strings.Contains(f.Path, "/ld-linux"):
			loader = f.From
		case strings.Contains(f.Path, ".so"):
			libs = filepath.Dir(f.From)
		}
	}
	out, err := exec.Command(loader, "--library-path", libs, filepath.Join(root, "program"), "-c", "echo $((6*7))").CombinedOutput()
	if err != nil || string(out) != "42\n" {
		t.Errorf("the collected program printed %q: %v", out, err)
	}
}

func TestMissingLibraryIsNamed(t *testing.T) {
	root := unpackedHost(t, "/bin/bash")
	libs, err := filepath.Glob(filepath.Join(root, "*/*-linux-gnu/libtinfo.so*"))
	if err != nil || len(libs) != 1 {
		t.Fatalf("bash's library libtinfo was not collected: %v %v", libs, err)
	}
	if err := os.Remove(libs[0]); err != nil {
		t.Fatal(err)
	}
	_, err = programFiles(root, "program", "/usr/bin/program")
	if !errors.Is(err, ErrNoLibrary) || !strings.Contains(err.Error(), "libtinfo.so") {
		t.Errorf("the error %v does not name the missing library", err)
	}
}

func TestLinksResolveBelowTheRoot(t *testing.T) {
	root := t.TempDir()
	writeTestFile(t, filepath.Join(root, "lib/real.so"), []byte("x"))
	for link, target := range map[string]string{
		"lib64/absolute": "/lib/real.so", "lib/relative": "real.so", "lib/twice": "../lib64/absolute", "lib/escape": "../../../../lib/real.so", "lib/loop": "loop",
	} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, link)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"lib64/absolute", "lib/relative", "lib/twice", "lib/escape", "/lib/real.so"} {
		got, err := resolve(root, name)
		if want := filepath.Join(root, "lib/real.so"); err != nil || got != want {
			t.Errorf("resolve %s = %q, %v; want %s", name, got, err, want)
		}
	}
	if _, err := resolve(root, "lib/loop"); err == nil {
		t.Error("a link to itself was resolved")
	}
}

func TestImagesHaveWhatTheirEntryPointNames(t *testing.T) {
	program := filepath.Join(t.TempDir(), "program")
	writeTestFile(t, program, []byte("ELF"))
	for _, s := range []image.Spec{PauseSpec(program), CoreDNSSpec(program)} {
		found := false
		for _, f := range s.Files {
			found = found || f.Path == s.Entrypoint[0]
		}
		if !found {
			t.Errorf("image %s starts %s, which it does not hold", s.Name, s.Entrypoint[0])
		}
		if err := image.Build(filepath.Join(t.TempDir(), "image.tar"), s); err != nil {
			t.Error(err)
		}
	}
}

func TestPackageWithoutPsqlIsRefused(t *testing.T) {
	if _, err := AppSpec(t.TempDir()); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "psql") {
		t.Errorf("AppSpec of an empty folder: %v; want an error that names psql", err)
	}
}
