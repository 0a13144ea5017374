package artifacts

import (
	"bytes"
	"compress/gzip"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Kernel is what a virtual machine boots: Debian's kernel for cloud machines,
// its modules, and an initramfs of ours that makes the machine's own root file
// system, shared by virtiofs, the guest's (initramfs/init says how).
type Kernel struct {
	Image      string // bzImage
	ModulesDir string // for modprobe -d: holds lib/modules/VERSION
	Version    string // uname -r in the guest
	Initramfs  string // gzip-compressed cpio
}

//go:embed initramfs/init
var initScript []byte

// What the initramfs loads to reach the root file system, the network cards and
// the guest agent's port. All else is loaded later, with modprobe -d ModulesDir.
var bootModules = []string{"virtio_pci", "virtiofs", "overlay", "virtio_net", "virtio_console"}

// The modules that the lab and the kernel tests load later. Building fails when
// the kernel package does not have one, instead of a test much later.
var laterModules = []string{
	"8021q", "veth", "tun", "bridge", "br_netfilter", "dummy", "nf_tables", "nft_ct", "nft_nat", "nft_masq",
	"nft_chain_nat", "nft_compat", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nft_numgen", "nft_reject_ipv4",
	"nf_conntrack", "nf_conntrack_netlink", "xt_addrtype", "xt_comment", "xt_conntrack", "xt_mark", "xt_MASQUERADE",
	"xt_multiport", "xt_nat", "xt_physdev", "xt_statistic", "xt_tcpudp", "xt_set", "ip_set", "ip_tables", "iptable_nat",
	"iptable_filter", "iptable_mangle",
}

// Kernel unpacks the newest linux-image-cloud-amd64 that the machine's Debian
// sources offer and makes the initramfs for it. It needs kmod (depmod, modprobe).
func (c *Cache) Kernel(ctx context.Context) (Kernel, error) {
	image, err := c.kernelPackage(ctx)
	if err != nil {
		return Kernel{}, err
	}
	tree, err := c.Debian(ctx, image)
	if err != nil {
		return Kernel{}, err
	}
	busybox, err := c.Debian(ctx, "busybox-static")
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
		key:   key(filepath.Base(tree), filepath.Base(busybox), string(initScript), strings.Join(bootModules, " "), strings.Join(laterModules, " ")),
		title: "kernel " + version + " with initramfs", usually: "a few seconds", deadline: 5 * time.Minute,
		build: func(ctx context.Context, dir string) error {
			return makeKernel(ctx, dir, tree, filepath.Join(busybox, "bin", "busybox"), version)
		},
	})
	if err != nil {
		return Kernel{}, err
	}
	return Kernel{
		Image:      filepath.Join(tree, "boot", "vmlinuz-"+version),
		ModulesDir: dir,
		Version:    version,
		Initramfs:  filepath.Join(dir, "initramfs.gz"),
	}, nil
}

var kernelDependency = regexp.MustCompile(`(?m)^\s*Depends: (linux-image-\S+-cloud-amd64)$`)

// kernelPackage resolves the meta package to the package of one version.
func (c *Cache) kernelPackage(ctx context.Context) (string, error) {
	const meta = "linux-image-cloud-amd64"
	if _, err := c.candidates(ctx, []string{meta}); err != nil {
		return "", err
	}
	out, err := command{env: []string{"LC_ALL=C"}, argv: []string{"apt-cache", "depends", "--", meta}}.run(ctx)
	if err != nil {
		return "", fmt.Errorf("ask apt which kernel %s is: %w", meta, err)
	}
	m := kernelDependency.FindSubmatch(out)
	if m == nil {
		return "", fmt.Errorf("ask apt which kernel %s is: it depends on no linux-image:\n%s", meta, out)
	}
	return string(m[1]), nil
}

// makeKernel fills dir with lib/modules/VERSION (links to the unpacked modules,
// with an index of our own beside them, as the package has none) and the
// initramfs.
func makeKernel(ctx context.Context, dir, tree, busybox, version string) error {
	from := filepath.Join(tree, "lib", "modules", version)
	to := filepath.Join(dir, "lib", "modules", version)
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		return fmt.Errorf("copy the modules of %s: %w", version, err)
	}
	if _, err := (command{argv: []string{tool("depmod"), "-b", dir, version}}).run(ctx); err != nil {
		return fmt.Errorf("index the modules of %s (is the package kmod installed?): %w", version, err)
	}
	order, err := loadOrder(ctx, dir, version, bootModules)
	if err != nil {
		return err
	}
	if _, err := loadOrder(ctx, dir, version, laterModules); err != nil {
		return err
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return fmt.Errorf("read the shell of the initramfs: %w", err)
	}

	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	a := newArchive(z)
	for _, d := range []string{"bin", "dev", "m"} {
		a.dir(d)
	}
	a.file("bin/busybox", 0o755, shell)
	a.file("init", 0o755, initScript)
	var names []string
	for _, path := range order {
		b, err := os.ReadFile(path)
		if err != nil {
			return fmt.Errorf("read a module for the initramfs: %w", err)
		}
		names = append(names, filepath.Base(path))
		a.file("m/"+filepath.Base(path), 0o644, b)
	}
	a.file("m/order", 0o644, []byte(strings.Join(names, "\n")+"\n"))
	if err := errors.Join(a.close(), z.Close()); err != nil {
		return fmt.Errorf("pack the initramfs: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "initramfs.gz"), packed.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the initramfs: %w", err)
	}
	return nil
}

// loadOrder lists the files of the modules and of what they need, each after
// what it needs. Modules that are built into the kernel have no file.
func loadOrder(ctx context.Context, dir, version string, modules []string) ([]string, error) {
	var files []string
	for _, m := range modules {
		out, err := command{argv: []string{tool("modprobe"), "-d", dir, "-S", version, "--show-depends", m}}.run(ctx)
		if err != nil {
			return nil, fmt.Errorf("look for module %s in kernel %s: %w", m, version, err)
		}
		for line := range strings.Lines(string(out)) {
			if f := strings.Fields(line); len(f) >= 2 && f[0] == "insmod" && !slices.Contains(files, f[1]) {
				files = append(files, f[1])
			}
		}
	}
	return files, nil
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
