// Package image makes container images without a registry, a daemon or a base
// image: one layer per image, of files given by name, the same bytes for the
// same input (sorted entries, no times, no owners). The result is a tarball that
// `ctr images import` and `docker load` read.
//
// It knows nothing of what the images are for: scripts/image and lab/kube do.
package image

import (
	"archive/tar"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/static"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// Spec is one image.
type Spec struct {
	Name       string   // with a registry and a tag: localhost/branchline/aws-node:dev
	Arch       string   // GOARCH; empty means amd64
	Entrypoint []string // no shell takes part
	Cmd        []string
	Env        []string // KEY=value; empty means PATH of the usual folders
	User       string   // as in a Dockerfile; empty means root
	WorkingDir string
	Labels     map[string]string
	Files      []File
}

// File is one entry of the image's layer: a regular file when From or Content is
// set, a symbolic link when Link is, else a folder. Folders above an entry are
// made as needed.
type File struct {
	Path    string      // absolute in the image
	From    string      // path of the file to copy
	Content []byte      // instead of From
	Link    string      // target of a symbolic link
	Mode    os.FileMode // 0 means 0755
}

// Build writes the images into one tarball at out, whole or not at all. Images
// of the same name but for other architectures need a tarball each.
func Build(out string, images ...Spec) error {
	byTag := map[name.Tag]v1.Image{}
	for _, s := range images {
		tag, err := name.NewTag(s.Name, name.WeakValidation)
		if err != nil {
			return fmt.Errorf("build image %q: %w", s.Name, err)
		}
		// Without them a runtime would look for another image than the one that is written.
		if !strings.Contains(s.Name, "/") || !strings.HasSuffix(s.Name, ":"+tag.TagStr()) {
			return fmt.Errorf("build image %q: its name needs a registry and a tag", s.Name)
		}
		if _, ok := byTag[tag]; ok {
			return fmt.Errorf("build image %s: the name is given twice", s.Name)
		}
		img, err := s.image()
		if err != nil {
			return fmt.Errorf("build image %s: %w", s.Name, err)
		}
		byTag[tag] = img
	}
	if len(byTag) == 0 {
		return errors.New("build images: none given")
	}
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+"-")
	if err != nil {
		return fmt.Errorf("write images: %w", err)
	}
	defer os.Remove(f.Name())
	err = errors.Join(tarball.MultiWrite(byTag, f), f.Chmod(0o644), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), out)
	}
	if err != nil {
		return fmt.Errorf("write images to %s: %w", out, err)
	}
	return nil
}

func (s Spec) image() (v1.Image, error) {
	layer, err := layerOf(s.Files)
	if err != nil {
		return nil, err
	}
	// Not compressed, as docker save writes layers: a node of the lab, which has a CPU that is emulated, would be seconds
	// longer over it, and who pushes an image compresses it by then.
	img, err := mutate.AppendLayers(empty.Image, static.NewLayer(layer, types.DockerUncompressedLayer))
	if err != nil {
		return nil, err
	}
	cf, err := img.ConfigFile()
	if err != nil {
		return nil, err
	}
	cf = cf.DeepCopy()
	cf.OS, cf.Architecture = "linux", cmp.Or(s.Arch, "amd64")
	cf.Config = v1.Config{
		Entrypoint: s.Entrypoint, Cmd: s.Cmd, Env: s.Env, User: s.User, WorkingDir: s.WorkingDir, Labels: s.Labels,
	}
	if len(s.Env) == 0 {
		cf.Config.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/app"}
	}
	return mutate.ConfigFile(img, cf)
}

// layerOf is the tar stream of the files.
func layerOf(files []File) ([]byte, error) {
	entries := map[string]File{}
	for _, f := range files {
		p := strings.TrimPrefix(path.Clean(f.Path), "/")
		if !path.IsAbs(f.Path) || p == "" {
			return nil, fmt.Errorf("add %q: the path in the image must be absolute", f.Path)
		}
		if _, ok := entries[p]; ok {
			return nil, fmt.Errorf("add /%s: it is given twice", p)
		}
		entries[p] = f
	}
	for p := range entries {
		for d := path.Dir(p); d != "."; d = path.Dir(d) {
			f, ok := entries[d]
			if !ok {
				entries[d] = File{Path: "/" + d}
			} else if !f.isDir() {
				return nil, fmt.Errorf("add /%s: /%s is not a folder", p, d)
			}
		}
	}
	paths := make([]string, 0, len(entries))
	for p := range entries {
		paths = append(paths, p)
	}
	slices.Sort(paths)

	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for _, p := range paths {
		if err := add(w, p, entries[p]); err != nil {
			return nil, fmt.Errorf("add /%s: %w", p, err)
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func (f File) isDir() bool { return f.From == "" && f.Content == nil && f.Link == "" }

func add(w *tar.Writer, p string, f File) error {
	mode := f.Mode.Perm()
	if mode == 0 {
		mode = 0o755
	}
	h := &tar.Header{Name: p, Mode: int64(mode), ModTime: time.Unix(0, 0), Format: tar.FormatPAX}
	content := f.Content
	switch {
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.isDir():
		h.Typeflag, h.Name = tar.TypeDir, p+"/"
		if f.Mode&os.ModeSticky != 0 {
			h.Mode |= 0o1000
		}
	default:
		if f.From != "" {
			var err error
			if content, err = os.ReadFile(f.From); err != nil {
				return err
			}
		}
		h.Typeflag, h.Size = tar.TypeReg, int64(len(content))
	}
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err := w.Write(content)
	return err
}
