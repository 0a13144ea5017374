package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
)

// Kernel is what a virtual machine boots: Debian's kernel for cloud machines and
// its modules. The initramfs is lab/instance's.
type Kernel struct {
	Image      string // bzImage
	ModulesDir string // for modprobe -d: holds lib/modules/VERSION
	Version    string // uname -r in the guest
}

// neededModules are what the lab and the kernel tests load, at boot and later.
// Building fails when the kernel package does not have one, instead of a test
// much later.
var neededModules = []string{
	"virtio_pci", "virtiofs", "overlay", "virtio_net", "virtio_console",
	"8021q", "veth", "tun", "bridge", "br_netfilter", "dummy", "nf_tables", "nft_ct", "nft_nat", "nft_masq",
	"nft_chain_nat", "nft_compat", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_numgen", "nft_reject_ipv4",
	"nf_conntrack", "nf_conntrack_netlink", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE",
	"xt_multiport", "xt_nat", "xt_physdev", "xt_statistic", "xt_tcpudp", "xt_set", "ip_set", "ip_tables", "iptable_nat",
	"iptable_filter", "iptable_mangle", "ip6_tables", "ip6table_nat", "ip6table_filter", "ip6table_mangle",
}

// Kernel unpacks the newest linux-image-cloud-amd64 that the machine's Debian
// sources offer and indexes its modules. It needs kmod (depmod, modprobe).
func (c *Cache) Kernel(ctx context.Context) (Kernel, error) {
	image, err := c.kernelPackage(ctx)
	if err != nil {
		return Kernel{}, err
	}
	tree, err := c.Debian(ctx, image)
	if err != nil {
		return Kernel{}, err
	}
	version := strings.TrimPrefix(image, "linux-image-")
	modules := filepath.Join(tree, "lib", "modules", version)
	if _, err := os.Stat(modules); err != nil {
		return Kernel{}, fmt.Errorf("look for the modules of %s: %w", image, err)
	}
	dir, err := c.entry(ctx, recipe{
		kind:  "kernel",
		key:   key(filepath.Base(tree), strings.Join(neededModules, " ")),
		title: "modules of kernel " + version, usually: "a few seconds", deadline: 5 * time.Minute,
		build: func(ctx context.Context, dir string) error { return indexModules(ctx, dir, tree, version) },
	})
	if err != nil {
		return Kernel{}, err
	}
	return Kernel{
		Image:      filepath.Join(tree, "boot", "vmlinuz-"+version),
		ModulesDir: dir,
		Version:    version,
	}, nil
}

var kernelDependency = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+-cloud-amd64)$`)

// kernelPackage resolves the meta package to the package of one version.
func (c *Cache) kernelPackage(ctx context.Context) (string, error) {
	const meta = "linux-image-cloud-amd64"
	if _, err := c.candidates(ctx, []string{meta}); err != nil {
		return "", err
	}
	out, err := c.askApt(ctx, "apt-cache", "depends", "--", meta)
	if err != nil {
		return "", fmt.Errorf("ask apt which kernel %s is: %w", meta, err)
	}
	m := kernelDependency.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("ask apt which kernel %s is: it depends on no linux-image:\n%s", meta, out)
	}
	return string(m[1]), nil
}

// indexModules fills dir with lib/modules/VERSION: the unpacked modules with an
// index, which the package makes only when it is installed.
func indexModules(ctx context.Context, dir, tree, version string) error {
	from := filepath.Join(tree, "lib", "modules", version)
	to := filepath.Join(dir, "lib", "modules", version)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("copy the modules of %s: %w", version, err)
	}
	if _, err := (command{argv: []string{tool("depmod"), "-b", dir, version}}).run(ctx); err != nil {
		return fmt.Errorf("index the modules of %s (is the package kmod installed?): %w", version, err)
	}
	for _, m := range neededModules {
		// A module that is built into the kernel counts as found.
		if _, err := (command{argv: []string{tool("modprobe"), "-d", dir, "-S", version, "--show-depends", m}}).run(ctx); err != nil {
			return fmt.Errorf("look for module %s in kernel %s: %w", m, version, err)
		}
	}
	return nil
}

// tool is the path of an administrator's program: /usr/sbin is not in every
// user's PATH.
func tool(name string) string {
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if p := filepath.Join(dir, name); isExecutable(p) {
			return p
		}
	}
	return name
}

func isExecutable(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0
}
