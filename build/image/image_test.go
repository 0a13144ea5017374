package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// t0 is when no file of the test was made.
var t0 = time.Unix(1, 0)

func TestSameInputGivesTheSameBytes(t *testing.T) {
	dir := t.TempDir()
	src := filepath.Join(dir, "program")
	if err := os.WriteFile(src, []byte("ELF"), 0o700); err != nil {
		t.Fatal(err)
	}
	files := []File{{Path: "/app/program", From: src}, {Path: "/etc/x", Content: []byte("y"), Mode: 0o600}, {Path: "/tmp", Mode: 0o777 | os.ModeSticky}}
	reversed := []File{files[2], files[1], files[0]}
	var outs [2][]byte
	for i, f := range [][]File{files, reversed} {
		out := filepath.Join(dir, "image.tar")
		if err := Build(out, Spec{Name: "localhost/test:1", Arch: "arm64", Entrypoint: []string{"/app/program", "run"}, Files: f}); err != nil {
			t.Fatal(err)
		}
		var err error
		if outs[i], err = os.ReadFile(out); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(src, t0, t0); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(outs[0], outs[1]) {
		t.Error("two builds from the same files differ")
	}
}

func TestImageHoldsTheFilesAndTheConfiguration(t *testing.T) {
	out := filepath.Join(t.TempDir(), "image.tar")
	err := Build(out, Spec{
		Name: "localhost/a/b:dev", Arch: "arm64", Entrypoint: []string{"/app/x", "run"}, User: "65534",
		Files: []File{{Path: "/app/x", Content: []byte("hello")}, {Path: "/bin/x", Link: "/app/x"}, {Path: "/tmp", Mode: 0o777 | os.ModeSticky}},
	})
	if err != nil {
		t.Fatal(err)
	}
	manifest, err := tarball.LoadManifest(func() (io.ReadCloser, error) { return os.Open(out) })
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"localhost/a/b:dev"}, manifest[0].RepoTags); d != "" {
		t.Errorf("names (-want +got):\n%s", d)
	}
	img, err := tarball.ImageFromPath(out, nil)
	if err != nil {
		t.Fatal(err)
	}
	cf, err := img.ConfigFile()
	if err != nil {
		t.Fatal(err)
	}
	if cf.Architecture != "arm64" || cf.OS != "linux" || cf.Config.User != "65534" || !cmp.Equal(cf.Config.Entrypoint, []string{"/app/x", "run"}) {
		t.Errorf("configuration is %+v on %s/%s", cf.Config, cf.OS, cf.Architecture)
	}
	layers, err := img.Layers()
	if err != nil {
		t.Fatal(err)
	}
	rc, err := layers[0].Uncompressed()
	if err != nil {
		t.Fatal(err)
	}
	defer rc.Close()
	var got []string
	for r := tar.NewReader(rc); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, strings.TrimSpace(strings.Join([]string{string(h.Typeflag), h.Name, h.Linkname}, " ")))
		if h.Uid != 0 || h.ModTime.Unix() != 0 {
			t.Errorf("%s carries an owner or a time", h.Name)
		}
	}
	want := []string{"5 app/", "0 app/x", "5 bin/", "2 bin/x /app/x", "5 tmp/"}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("entries (-want +got):\n%s", d)
	}
}

func TestBadInputIsRefusedAndLeavesNothing(t *testing.T) {
	for title, s := range map[string]Spec{
		"relative path":      {Name: "localhost/a:1", Files: []File{{Path: "app/x", Content: []byte{1}}}},
		"root":               {Name: "localhost/a:1", Files: []File{{Path: "/"}}},
		"same path twice":    {Name: "localhost/a:1", Files: []File{{Path: "/a", Content: []byte{1}}, {Path: "/./a", Content: []byte{2}}}},
		"file as a folder":   {Name: "localhost/a:1", Files: []File{{Path: "/a", Content: []byte{1}}, {Path: "/a/b", Content: []byte{2}}}},
		"source not there":   {Name: "localhost/a:1", Files: []File{{Path: "/a", From: "/no/such/file"}}},
		"no registry":        {Name: "a:1", Files: []File{{Path: "/a", Content: []byte{1}}}},
		"name without a tag": {Name: "localhost/a", Files: []File{{Path: "/a", Content: []byte{1}}}},
	} {
		t.Run(title, func(t *testing.T) {
			dir := t.TempDir()
			if err := Build(filepath.Join(dir, "image.tar"), s); err == nil {
				t.Error("no error")
			}
			left, err := os.ReadDir(dir)
			if err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}
