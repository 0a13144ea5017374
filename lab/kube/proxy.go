package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
)

// ProxyMode is how kube-proxy brings Services into the kernel.
type ProxyMode string

// The modes that kube-proxy has on Linux.
const (
	ProxyNFTables ProxyMode = "nftables"
	ProxyIPTables ProxyMode = "iptables"
	ProxyIPVS     ProxyMode = "ipvs"
)

// ProxyModes are all of them.
var ProxyModes = []ProxyMode{ProxyNFTables, ProxyIPTables, ProxyIPVS}

// checkProxyMode says whether the node's kube-proxy can run in the mode.
func (n *NodeConfig) checkProxyMode(m ProxyMode) error {
	if !slices.Contains(ProxyModes, m) {
		return fmt.Errorf("kube-proxy has no mode %q; its modes are %v", m, ProxyModes)
	}
	return nil
}

// ipTables is the name of the cluster's family's iptables, and what nft calls that family.
func (n *NodeConfig) ipTables() (program, family string) {
	if n.Address.Is6() {
		return "ip6tables", "ip6"
	}
	return "iptables", "ip"
}

// iptablesOf is which iptables kube-proxy finds in a mode, so that both of those that nodes have take part.
var iptablesOf = map[ProxyMode]string{ProxyNFTables: "nft", ProxyIPTables: "nft", ProxyIPVS: "legacy"}

// proxyWithin bounds a switch of modes, clean-up included.
const proxyWithin = 3 * prepareWithin

// SetProxyMode has the node's kube-proxy run in another mode, as an administrator does it: what the old one has left in
// the kernel is cleaned up first. It returns when the program runs: Services work a little later. Where it runs in that mode already
// nothing is done.
func (n *Node) SetProxyMode(ctx context.Context, mode ProxyMode) error {
	if err := n.cfg.checkProxyMode(mode); err != nil || n.cfg.ProxyMode == mode {
		return err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, proxyWithin, fmt.Errorf("it took longer than %s", proxyWithin))
	defer cancel()
	if err := n.components[KubeProxy].stop(ctx, syscall.SIGKILL); err != nil {
		return err
	}
	if err := n.cleanUpProxy(ctx, n.cfg.ProxyMode); err != nil {
		return err
	}
	if mode == ProxyIPVS {
		// kube-proxy can't load them by itself: who administers the node does.
		if err := n.run(ctx, prepareWithin, nil, "modprobe", "-a", "ip_vs", "ip_vs_rr"); err != nil {
			return fmt.Errorf("load what kube-proxy needs in mode %s: %w", mode, err)
		}
	}
	n.components[KubeProxy] = n.proxy(mode)
	if err := n.components[KubeProxy].start(ctx); err != nil {
		return err
	}
	n.cfg.ProxyMode = mode
	return nil
}

// Of what kube-proxy leaves in the kernel, what the next one does not clean up at its start. "kube-proxy --cleanup" does the
// same by hundreds of programs, which takes minutes in a virtual machine without hardware acceleration. Nobody else on the node
// has rules in tables of these names. What is left of IPVS mode nftables takes away when it starts.
func (n *NodeConfig) proxyLeftovers(mode ProxyMode) (script string) {
	program, family := n.ipTables()
	switch mode {
	case ProxyIPTables:
		return fmt.Sprintf(`for t in nat filter mangle; do echo "add table %[1]s $t"; echo "delete table %[1]s $t"; done | nft -f -`, family)
	case ProxyIPVS:
		return fmt.Sprintf(`printf '*%%s\nCOMMIT\n' nat filter mangle | %s-legacy-restore`, program)
	}
	return ""
}

func (n *Node) cleanUpProxy(ctx context.Context, mode ProxyMode) error {
	script := n.cfg.proxyLeftovers(mode)
	if script == "" {
		return nil
	}
	if err := n.run(ctx, prepareWithin, nil, "/bin/sh", "-c", script); err != nil {
		return fmt.Errorf("clean up after kube-proxy in mode %s: %w", mode, err)
	}
	return nil
}

func (n *Node) proxy(mode ProxyMode) *component {
	argv := n.proxyArgv(mode,
		"--kubeconfig="+n.path("kube-proxy.kubeconfig"),
		"--proxy-mode="+string(mode),
		"--hostname-override="+n.cfg.Name,
		// 0 leaves the kernel's values: they may belong to more than this node.
		"--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0", "--conntrack-tcp-timeout-close-wait=0",
		// As the other modes have it; without, in mode ipvs each change of a pod is dozens of programs at once.
		"--ipvs-min-sync-period=1s",
		"--v=2",
	)
	return n.component(KubeProxy, argv[0], argv[1:]...)
}

// proxyArgv is kube-proxy's command line. It alone finds an iptables, by a PATH of its own: what else runs on the node does
// without, as before.
func (n *Node) proxyArgv(mode ProxyMode, flags ...string) []string {
	return append([]string{
		"/usr/bin/env",
		"PATH=" + n.iptablesDir(iptablesOf[mode]) + ":" + n.cfg.searchPath(),
		"XTABLES_LIBDIR=" + filepath.Join(n.cfg.Programs.Tools.Dir, "usr/lib/x86_64-linux-gnu/xtables"),
		n.path("bin", "kube-proxy"),
	}, flags...)
}

func (n *Node) iptablesDir(variant string) string { return n.path("iptables-" + variant) }

// linkIPTables makes what Debian's alternatives make when the package is installed: iptables and its companions, each by the
// one program of its variant. It makes those of the cluster's family alone: kube-proxy leaves the other one out then, and starts
// in half the time.
func (n *Node) linkIPTables() error {
	family, _ := n.cfg.ipTables()
	for _, variant := range []string{"nft", "legacy"} {
		program := "xtables-" + variant + "-multi"
		target, err := n.cfg.Programs.Tools.Path(program)
		if err != nil {
			return fmt.Errorf("find kube-proxy's iptables: %w", err)
		}
		dir := n.iptablesDir(variant)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make the folder of kube-proxy's iptables: %w", err)
		}
		for _, role := range []string{"", "-save", "-restore"} {
			name := family + role
			if err := os.Symlink(target, filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrExist) {
				return fmt.Errorf("link kube-proxy's %s: %w", name, err)
			}
		}
	}
	return nil
}
