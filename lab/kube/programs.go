package kube

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/build/image"
	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/kube/images"
)

// Programs are the files that a cluster is made of. Instances must see all of them under the same paths.
type Programs struct {
	// Hyperkube is the multi-call binary of lab/kube/hyperkube.
	Hyperkube string
	// Runtime holds containerd 1.6 and runc, Tools what kube-proxy calls.
	Runtime, Tools artifacts.Tree
	// Loopback is the CNI plugin of that name, which containerd 1.6 needs for every pod. It is a part of a node's
	// image, not of a network plugin.
	Loopback string
	// Images is a tarball with the images of package images.
	Images string
	// Busybox is the application's, for instances that run no pods.
	Busybox string
}

// LoadPrograms takes the programs from the cache, where what is missing is built or downloaded first, and writes the
// images to folder dir.
func LoadPrograms(ctx context.Context, cache *artifacts.Cache, dir string) (Programs, error) {
	var p Programs
	var coredns, pause, app string
	for _, step := range []struct {
		what string
		do   func() error
	}{
		{"Kubernetes", func() (err error) { p.Hyperkube, err = cache.Hyperkube(ctx); return }},
		{"CoreDNS", func() (err error) { coredns, err = cache.CoreDNS(ctx); return }},
		{"containerd and runc", func() (err error) { p.Runtime, err = cache.Containerd(ctx); return }},
		{"a node's network tools", func() (err error) { p.Tools, err = cache.NodeTools(ctx); return }},
		{"the CNI plugin loopback", func() (err error) {
			p.Loopback, err = cache.Go(ctx, "loopback", "github.com/containernetworking/plugins/plugins/main/loopback", "")
			return
		}},
		{"the sandbox's program", func() (err error) { pause, err = cache.Go(ctx, "pause", "./lab/kube/pause", ""); return }},
		{"the application's packages", func() (err error) { app, err = cache.Debian(ctx, images.AppPackages()...); return }},
	} {
		if err := step.do(); err != nil {
			return p, fmt.Errorf("get %s for the cluster: %w", step.what, err)
		}
	}
	spec, err := images.AppSpec(app)
	if err != nil {
		return p, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return p, fmt.Errorf("make the folder of images: %w", err)
	}
	p.Images, p.Busybox = filepath.Join(dir, "images.tar"), filepath.Join(app, "bin/busybox")
	return p, image.Build(p.Images, images.PauseSpec(pause), images.CoreDNSSpec(coredns), spec)
}
