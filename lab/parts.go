package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/branchline-cni/branchline/build/image"
	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/kube"
	"github.com/branchline-cni/branchline/lab/kube/images"
)

// Names of the images that pods of a walk-through use.
const (
	ClientImage = images.App
	DNSImage    = images.CoreDNS
	PauseImage  = images.Pause
)

// parts are the files that a lab is made of; all are in the cache or in the lab's folder.
type parts struct {
	cacheDir   string
	node       kube.Programs
	containerd artifacts.Tree // in place of the one in node, if it is set
	agent      string         // the guest agent
	kernel     artifacts.Kernel
	postgres   artifacts.PostgreSQL
	awscli     artifacts.AWSCLI
	controller string // our vpc-controller
	images     string // a tarball with our own images
}

// prepare finds or builds everything before anything is started.
func (l *Lab) prepare(ctx context.Context) error {
	c, err := artifacts.Open()
	if err != nil {
		return err
	}
	p := parts{cacheDir: c.Dir(), images: filepath.Join(l.BinDir(), "branchline.tar")}
	var cni, egress, ipamd string
	for _, s := range []struct {
		what string
		make func() error
	}{
		{"Kubernetes and what its nodes run", func() (err error) { p.node, err = kube.LoadPrograms(ctx, c, l.BinDir()); return }},
		{"containerd 2", func() (err error) {
			if l.opt.Containerd2 {
				p.containerd, err = c.Containerd2(ctx)
			}
			return
		}},
		{"kernel", func() (err error) { p.kernel, err = c.Kernel(ctx); return }},
		{"PostgreSQL", func() (err error) { p.postgres, err = c.PostgreSQL(ctx); return }},
		{"the AWS CLI", func() (err error) { p.awscli, err = c.AWSCLI(ctx); return }},
		{"guest agent", func() (err error) { p.agent, err = instance.Agent(ctx, c); return }},
		{"aws-cni", func() (err error) { cni, err = c.Go(ctx, "aws-cni", "./cmd/aws-cni", ""); return }},
		{"egress-cni", func() (err error) { egress, err = c.Go(ctx, "egress-cni", "./cmd/egress-cni", ""); return }},
		{"ipamd", func() (err error) { ipamd, err = c.Go(ctx, "ipamd", "./cmd/ipamd", ""); return }},
		{"vpc-controller", func() (err error) {
			p.controller, err = c.Go(ctx, "vpc-controller", "./cmd/vpc-controller", "")
			return
		}},
	} {
		if err := s.make(); err != nil {
			return fmt.Errorf("get %s: %w", s.what, err)
		}
	}
	shipped := filepath.Join(l.opt.Dir, "shipped")
	if err := os.MkdirAll(shipped, 0o755); err != nil {
		return fmt.Errorf("make the folder of the shipped programs: %w", err)
	}
	programs := map[string]string{"ipamd": ipamd, "aws-cni": cni, "egress-cni": egress, "vpc-controller": p.controller}
	for _, core := range product.CorePlugins() {
		path, err := c.Go(ctx, core.Name, core.Package, "")
		if err != nil {
			return fmt.Errorf("get the CNI plugin %s: %w", core.Name, err)
		}
		programs[core.Name] = path
	}
	for name, path := range programs {
		if err := os.Symlink(path, filepath.Join(shipped, name)); err != nil {
			return fmt.Errorf("collect the shipped programs: %w", err)
		}
	}
	shippedImages := []image.Spec{product.AgentImage(agentImage, "amd64", shipped)}
	if l.opt.Controller == Deployment {
		shippedImages = append(shippedImages, product.ControllerImage(controllerImage, "amd64", shipped))
	}
	if err := image.Build(p.images, shippedImages...); err != nil {
		return fmt.Errorf("make the product's images: %w", err)
	}
	l.parts = p
	return l.writeTools()
}

// The names of the product's images in its manifests.
const (
	agentImage      = "localhost/branchline/aws-node:dev"
	controllerImage = "localhost/branchline/vpc-controller:dev"
)

// writeTools makes programs of the cache callable by name, with their own libraries.
func (l *Lab) writeTools() error {
	for name, t := range map[string]struct {
		tree artifacts.Tree
		path string
	}{
		"psql":    {l.parts.postgres.Tree, filepath.Join(l.parts.postgres.Bin, "psql")},
		"tcpdump": {l.parts.node.Tools, "tcpdump"},
		"ip":      {l.parts.node.Tools, "ip"},
	} {
		path := t.path
		if !filepath.IsAbs(path) {
			var err error
			if path, err = t.tree.Path(path); err != nil {
				return err
			}
		}
		script := fmt.Sprintf("#!/bin/sh\nLD_LIBRARY_PATH=%s exec %s \"$@\"\n", quoteAll([]string{t.tree.LibraryPath()})[0], quoteAll([]string{path})[0])
		if err := writeScript(l.Tool(name), script); err != nil {
			return err
		}
	}
	return writeScript(l.Tool("busybox"), fmt.Sprintf("#!/bin/sh\nexec %s \"$@\"\n", quoteAll([]string{l.parts.node.Busybox})[0]))
}

// Tool is the path of a program that the lab brings, the same on the machine and in every instance.
func (l *Lab) Tool(name string) string { return filepath.Join(l.BinDir(), name) }
