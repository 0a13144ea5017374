package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/branchline-cni/branchline/build/image"
	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
)

// OtherAgentImage is the node agent's image under another tag: its programs say that they are of another version, and are
// else what the nodes have.
const OtherAgentImage = "localhost/branchline/aws-node:" + otherVersion

const otherVersion = "other"

// ImportOtherRelease makes OtherAgentImage and gives it to every node, for an update to be rolled out.
func (l *Lab) ImportOtherRelease(ctx context.Context) error {
	c, err := artifacts.Open()
	if err != nil {
		return err
	}
	dir := filepath.Join(l.opt.Dir, "shipped-"+otherVersion)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of the other release's programs: %w", err)
	}
	programs := map[string]string{}
	for _, name := range append([]string{"ipamd"}, product.NodePlugins()...) {
		const version = ".Version=" + otherVersion
		programs[name], err = c.Go(ctx, name, "./cmd/"+name, "", "-X "+product.Module+"/rpc"+version, "-X "+product.Module+"/plugins/egress"+version)
		if err != nil {
			return fmt.Errorf("get the other release's %s: %w", name, err)
		}
	}
	for _, core := range product.CorePlugins() {
		if programs[core.Name], err = c.Go(ctx, core.Name, core.Package, ""); err != nil {
			return fmt.Errorf("get the CNI plugin %s: %w", core.Name, err)
		}
	}
	for name, path := range programs {
		if err := os.Symlink(path, filepath.Join(dir, name)); err != nil {
			return fmt.Errorf("collect the other release's programs: %w", err)
		}
	}
	tarball := filepath.Join(l.BinDir(), "branchline-"+otherVersion+".tar")
	if err := image.Build(tarball, product.AgentImage(OtherAgentImage, "amd64", dir)); err != nil {
		return fmt.Errorf("make the other release's image: %w", err)
	}
	l.mu.Lock()
	var wg sync.WaitGroup
	errs := make([]error, 0, len(l.nodes))
	for id, n := range l.nodes {
		errs = append(errs, nil)
		out := &errs[len(errs)-1]
		wg.Go(func() {
			if err := n.ImportImage(ctx, tarball); err != nil {
				*out = fmt.Errorf("give node %s the other release: %w", id, err)
			}
		})
	}
	l.mu.Unlock()
	wg.Wait()
	return errors.Join(errs...)
}

// RuntimeLog is the log of an instance's container runtime.
func (l *Lab) RuntimeLog(m Machine) string {
	return filepath.Join(l.stateDir(m.ID), "logs", "containerd.log")
}
