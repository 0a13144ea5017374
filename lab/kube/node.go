package kube

import (
	"context"
	_ "embed"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// prepareScript makes the instance ready for the node's programs.
//
//go:embed prepare.sh
var prepareScript string

// How long a node's steps may take. A VM without hardware acceleration needs the most of it.
const (
	prepareWithin  = time.Minute
	runtimeWithin  = 2 * time.Minute
	importWithin   = 3 * time.Minute
	registerWithin = 3 * time.Minute
)

// The programs of a node, as Node.Restart takes them.
const (
	Containerd Component = "containerd"
	Kubelet    Component = "kubelet"
	KubeProxy  Component = "kube-proxy"
)

// Node is an instance that is a node of the cluster.
type Node struct {
	cfg        NodeConfig
	machine    Machine
	log        *slog.Logger
	components map[Component]*component
}

// StartNode makes the Machine a node: containerd, the images, kubelet and kube-proxy. It returns when the node is
// registered. The node is NotReady until a network plugin puts its configuration into /etc/cni/net.d.
func (c *ControlPlane) StartNode(ctx context.Context, m Machine, cfg NodeConfig) (*Node, error) {
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find node %s's folder %s: %w", cfg.Name, cfg.Dir, err)
	}
	cfg.Dir = dir
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if cfg.Address.Is6() != c.cfg.Address.Is6() {
		return nil, fmt.Errorf("start node %s: its address %s is not of the family of the API server's (%s)", cfg.Name, cfg.Address, c.cfg.Address)
	}
	n := &Node{cfg: cfg, machine: m, log: c.log.With("node", cfg.Name)}
	if err := n.write(c); err != nil {
		return nil, err
	}
	if err := n.linkIPTables(); err != nil {
		return nil, err
	}
	n.components = map[Component]*component{
		Containerd: n.component(Containerd, filepath.Join(cfg.Containerd.Dir, "usr/bin/containerd"), "--config="+n.path("containerd.toml")),
		Kubelet:    n.ownCgroup(n.component(Kubelet, n.path("bin", "kubelet"), cfg.kubeletFlags()...)),
		KubeProxy:  n.proxy(cfg.ProxyMode),
	}
	for _, step := range []func(context.Context) error{n.prepare, n.startRuntime, n.importImages, n.startAgents} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("start node %s: %w", cfg.Name, err)
		}
	}
	_, err = c.Kubectl(ctx, "wait", "--for=create", "node/"+cfg.Name, "--timeout="+registerWithin.String())
	if err != nil {
		return nil, fmt.Errorf("wait for node %s to register: %w", cfg.Name, err)
	}
	return n, nil
}

// Name is the node's name in the cluster.
func (n *Node) Name() string { return n.cfg.Name }

// Restart kills one of the node's programs (Containerd, Kubelet, KubeProxy) and starts it again.
func (n *Node) Restart(ctx context.Context, name Component) error {
	p, ok := n.components[name]
	if !ok {
		return fmt.Errorf("%q is not a program of a node; they are %s, %s, %s", name, Containerd, Kubelet, KubeProxy)
	}
	if err := p.stop(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	return p.start(ctx)
}

// Stop ends the node's own programs. Containers go with the instance: its end is what ends them for certain.
func (n *Node) Stop(ctx context.Context) error {
	var first error
	for _, name := range []Component{KubeProxy, Kubelet, Containerd} {
		if err := n.components[name].stop(ctx, syscall.SIGKILL); err != nil && first == nil {
			first = err
		}
	}
	return first
}

func (n *Node) component(name Component, executable string, flags ...string) *component {
	return &component{
		name: string(name), machine: n.machine, log: n.log,
		command: instance.Command{Argv: n.cfg.argv(executable, flags...), Dir: "/"},
	}
}

// ownCgroup has a program run in a cgroup of its own where the instance has the unified hierarchy, as a service manager does.
func (n *Node) ownCgroup(c *component) *component {
	const script = `if [ -e /sys/fs/cgroup/cgroup.controllers ]; then
  own=/sys/fs/cgroup/system.slice/$0.service && mkdir -p $own && echo $$ >$own/cgroup.procs || exit
fi
exec "$@"`
	c.command.Argv = append([]string{"/bin/sh", "-c", script, c.name}, c.command.Argv...)
	return c
}

func (n *Node) path(elem ...string) string {
	return filepath.Join(append([]string{n.cfg.Dir}, elem...)...)
}

// write makes the node's keys, configuration and links.
func (n *Node) write(c *ControlPlane) error {
	if err := linkExecutables(n.path("bin"), n.cfg.Programs.Hyperkube, []string{"kubelet", "kube-proxy"}); err != nil {
		return err
	}
	serving, err := c.ca.issue(subject{user: n.cfg.Name, addresses: []netip.Addr{n.cfg.Address}, names: []string{n.cfg.Name}})
	if err != nil {
		return err
	}
	if err := serving.write(n.cfg.Dir, "kubelet"); err != nil {
		return err
	}
	// The authorizer and the admission plugin for nodes know a kubelet by this name and group.
	kubelet := subject{user: "system:node:" + n.cfg.Name, groups: []string{"system:nodes"}}
	if err := c.writeKubeconfig(n.path("kubelet.kubeconfig"), c.Server(), kubelet); err != nil {
		return err
	}
	if err := c.writeKubeconfig(n.path("kube-proxy.kubeconfig"), c.Server(), subject{user: "system:kube-proxy"}); err != nil {
		return err
	}
	kubeletYAML, err := n.cfg.kubeletConfig()
	if err != nil {
		return err
	}
	containerdTOML, err := n.cfg.containerdConfig()
	if err != nil {
		return err
	}
	for file, content := range map[string][]byte{
		"ca.crt":          c.ca.certPEM,
		"kubelet.yaml":    kubeletYAML,
		"containerd.toml": containerdTOML,
		"resolv.conf":     fmt.Appendf(nil, "nameserver %s\n", n.cfg.Nameserver),
	} {
		if err := writeFile(n.path(file), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) prepare(ctx context.Context) error {
	env := []string{"TMPFS_SIZE=" + n.cfg.TmpfsSize}
	if err := n.run(ctx, prepareWithin, env, "/bin/sh", "-c", prepareScript); err != nil {
		return fmt.Errorf("prepare the instance: %w", err)
	}
	if err := n.run(ctx, prepareWithin, nil, "install", "-m", "755", n.cfg.Programs.Loopback, filepath.Join(cniBinDir, "loopback")); err != nil {
		return fmt.Errorf("install the CNI plugin loopback: %w", err)
	}
	return nil
}

func (n *Node) startRuntime(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, runtimeWithin, fmt.Errorf("it took longer than %s", runtimeWithin))
	defer cancel()
	p := n.components[Containerd]
	if err := p.start(ctx); err != nil {
		return err
	}
	return p.await(ctx, 250*time.Millisecond, func(ctx context.Context) error {
		return n.run(ctx, 10*time.Second, nil, n.ctr(), "--address", containerdSocket, "version")
	})
}

func (n *Node) importImages(ctx context.Context) error {
	for _, tarball := range append([]string{n.cfg.Programs.Images}, n.cfg.Images...) {
		if err := n.ImportImage(ctx, tarball); err != nil {
			return err
		}
	}
	return nil
}

// ImportImage loads the images of a tarball, which the instance must see under the same path, for pods to use.
func (n *Node) ImportImage(ctx context.Context, tarball string) error {
	err := n.run(ctx, importWithin, nil, n.ctr(), "--address", containerdSocket, "--namespace", "k8s.io", "images", "import", tarball)
	if err != nil {
		return fmt.Errorf("import images from %s: %w", tarball, err)
	}
	return nil
}

func (n *Node) startAgents(ctx context.Context) error {
	for _, name := range []Component{Kubelet, KubeProxy} {
		if err := n.components[name].start(ctx); err != nil {
			return err
		}
	}
	return nil
}

func (n *Node) ctr() string { return filepath.Join(n.cfg.Programs.Runtime.Dir, "usr/bin/ctr") }

// run runs a program on the instance, to a good end.
func (n *Node) run(ctx context.Context, within time.Duration, env []string, argv ...string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("it took longer than %s", within))
	defer cancel()
	res, err := n.machine.Exec(ctx, instance.Command{Argv: n.cfg.argv(argv[0], argv[1:]...), Env: env, Dir: "/"})
	if err != nil {
		return err
	}
	if res.ExitCode != 0 {
		return fmt.Errorf("%s ended with status %d: %s", filepath.Base(argv[0]), res.ExitCode,
			strings.TrimSpace(string(res.Stderr)+string(res.Stdout)))
	}
	return nil
}
