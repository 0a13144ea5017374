package artifacts

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/build/product"
)

// ErrNoCheckout is returned where something must be built and the working folder
// is not inside a checkout of Branchline.
var ErrNoCheckout = errors.New("not inside a checkout of " + product.Module)

// Hyperkube is the path of the executable of lab/kube/hyperkube: etcd, the
// Kubernetes control plane, kubelet, kube-proxy and kubectl, by argv[0] or first
// argument.
func (c *Cache) Hyperkube(ctx context.Context) (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "lab", "kube", "hyperkube")
	version, err := requiredVersion(filepath.Join(dir, "go.mod"), "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	ldflags, err := kubernetesVersionFlags(version)
	if err != nil {
		return "", err
	}
	return c.goBuild(ctx, goRecipe{
		name: "hyperkube", title: "Kubernetes " + version, usually: "about 10 minutes the first time on 2 cores",
		deadline: 40 * time.Minute, dir: dir, pkg: ".", ldflags: ldflags,
	})
}

// CoreDNS is the path of the executable of lab/kube/coredns.
func (c *Cache) CoreDNS(ctx context.Context) (string, error) {
	root, err := Checkout()
	if err != nil {
		return "", err
	}
	dir := filepath.Join(root, "lab", "kube", "coredns")
	version, err := requiredVersion(filepath.Join(dir, "go.mod"), "github.com/coredns/coredns")
	if err != nil {
		return "", err
	}
	return c.goBuild(ctx, goRecipe{
		name: "coredns", title: "CoreDNS " + version, usually: "about 3 minutes the first time on 2 cores",
		deadline: 20 * time.Minute, dir: dir, pkg: ".",
		ldflags: []string{"-X github.com/coredns/coredns/coremain.GitCommit=" + version},
	})
}

// Containerd2 is containerd 2 with its shim, upstream's own programs at the version
// of lab/kube/containerd's go.mod. runc and ctr are not in it: Containerd has them.
func (c *Cache) Containerd2(ctx context.Context) (Tree, error) {
	root, err := Checkout()
	if err != nil {
		return Tree{}, err
	}
	const module = "github.com/containerd/containerd/v2"
	dir := filepath.Join(root, "lab", "kube", "containerd")
	version, err := requiredVersion(filepath.Join(dir, "go.mod"), module)
	if err != nil {
		return Tree{}, err
	}
	// Snapshotters that the lab doesn't use, and what would send traces.
	const tags = "no_btrfs no_devmapper no_zfs no_tracing"
	entry, err := c.goEntry(ctx, goRecipe{
		name: "containerd", title: "containerd " + version, usually: "about 2 minutes the first time on 2 cores",
		deadline: 20 * time.Minute, dir: dir, tags: tags, ldflags: []string{"-X " + module + "/version.Version=" + version},
		pkg: module + "/cmd/containerd", more: []string{module + "/cmd/containerd-shim-runc-v2"},
	})
	return Tree{entry}, err
}

// Go is the path of a static, stripped executable called name, built from
// package pkg ("./cmd/aws-cni") in the Go module in folder dir, with the build
// tags of what ships; dir may be relative to the checkout, and empty for the
// checkout itself.
func (c *Cache) Go(ctx context.Context, name, pkg, dir string, ldflags ...string) (string, error) {
	if !filepath.IsAbs(dir) {
		root, err := Checkout()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(root, dir)
	}
	return c.goBuild(ctx, goRecipe{
		name: name, title: name, deadline: 15 * time.Minute, dir: dir, pkg: pkg, tags: product.Tags, ldflags: ldflags,
	})
}

// Checkout is the root folder of the checkout that holds the working folder.
func Checkout() (string, error) {
	wd, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the working folder: %w", err)
	}
	for dir := wd; ; dir = filepath.Dir(dir) {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && moduleOf(string(b)) == product.Module {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("find the sources to build from in %s and above: %w", wd, ErrNoCheckout)
		}
	}
}

type goRecipe struct {
	name, title, usually string
	deadline             time.Duration
	dir, pkg, tags       string
	ldflags              []string
	more                 []string // further packages; then each executable is called as its package and is in a Tree
}

// goBuild is the path of the executable of a recipe for one.
func (c *Cache) goBuild(ctx context.Context, r goRecipe) (string, error) {
	dir, err := c.goEntry(ctx, r)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, r.name), nil
}

// goEntry is the folder with a recipe's executables.
func (c *Cache) goEntry(ctx context.Context, r goRecipe) (string, error) {
	version, err := command{dir: r.dir, argv: []string{"go", "env", "GOVERSION"}}.run(ctx)
	if err != nil {
		return "", fmt.Errorf("ask Go for its version: %w", err)
	}
	files, err := hashModule(r.dir)
	if err != nil {
		return "", err
	}
	ldflags := strings.Join(append([]string{"-s", "-w"}, r.ldflags...), " ")
	args := []string{"build", "-trimpath", "-ldflags", ldflags}
	if r.tags != "" {
		args = append(args, "-tags", r.tags)
	}
	inputs := append([]string{strings.TrimSpace(string(version)), r.pkg, files}, args...)
	inputs = append(inputs, r.more...)
	return c.entry(ctx, recipe{
		kind:     "go-" + r.name,
		key:      key(inputs...),
		title:    r.title,
		usually:  r.usually,
		deadline: r.deadline,
		build: func(ctx context.Context, dir string) error {
			out := filepath.Join(dir, r.name)
			if len(r.more) > 0 {
				out = filepath.Join(dir, "usr", "bin")
				if err := os.MkdirAll(out, 0o755); err != nil {
					return fmt.Errorf("make the folder of executables: %w", err)
				}
			}
			argv := append(append(append([]string{"go"}, args...), "-o", out, r.pkg), r.more...)
			_, err := command{dir: r.dir, env: []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64"}, argv: argv}.run(ctx)
			return err
		},
	})
}

// kubernetesVersionFlags makes the programs say which version they are: clients
// and the node's version skew rules read it.
func kubernetesVersionFlags(version string) ([]string, error) {
	major, rest, ok := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, ok2 := strings.Cut(rest, ".")
	if !ok || !ok2 {
		return nil, fmt.Errorf("version %q of k8s.io/kubernetes is not vMAJOR.MINOR.PATCH", version)
	}
	var flags []string
	for _, pkg := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		for _, kv := range []string{
			"gitVersion=" + version, "gitMajor=" + major, "gitMinor=" + minor, "gitTreeState=clean",
			"gitCommit=0000000000000000000000000000000000000000", "buildDate=2026-01-01T00:00:00Z",
		} {
			flags = append(flags, "-X "+pkg+"."+kv)
		}
	}
	return flags, nil
}

// requiredVersion is the version of module that a go.mod file requires.
func requiredVersion(gomod, module string) (string, error) {
	b, err := os.ReadFile(gomod)
	if err != nil {
		return "", fmt.Errorf("read the version of %s: %w", module, err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(line), "require "))
		if len(f) >= 2 && f[0] == module && strings.HasPrefix(f[1], "v") {
			return f[1], nil
		}
	}
	return "", fmt.Errorf("%s does not require %s", gomod, module)
}

// moduleOf is the module path of a go.mod file's text, or "".
func moduleOf(gomod string) string {
	s := bufio.NewScanner(strings.NewReader(gomod))
	for s.Scan() {
		if f := strings.Fields(s.Text()); len(f) == 2 && f[0] == "module" {
			return strings.Trim(f[1], `"`)
		}
	}
	return ""
}
