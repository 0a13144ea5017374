package artifacts

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Tree is a set of Debian packages unpacked into one folder, and how to run what
// is in it.
type Tree struct {
	Dir string
}

// Path is the absolute path of a program in the tree, looked for in the folders
// that Debian puts programs into.
func (t Tree) Path(name string) (string, error) {
	for _, d := range []string{"usr/bin", "usr/sbin", "bin", "sbin"} {
		if p := filepath.Join(t.Dir, d, name); isExecutable(p) {
			return p, nil
		}
		// Debian's alternatives (iptables -> /etc/alternatives/…) dangle in a tree.
		if link, err := os.Readlink(filepath.Join(t.Dir, d, name)); err == nil && !filepath.IsAbs(link) {
			return filepath.Join(t.Dir, d, name), nil
		}
	}
	return "", fmt.Errorf("no program %s in the unpacked packages in %s", name, t.Dir)
}

// Env is what a program of the tree needs in its environment: where the shared
// libraries that came with it are.
func (t Tree) Env() []string { return []string{"LD_LIBRARY_PATH=" + t.LibraryPath()} }

// LibraryPath is the tree's folders of shared libraries, separated by colons.
func (t Tree) LibraryPath() string {
	var dirs []string
	for _, d := range []string{"usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"} {
		if p := filepath.Join(t.Dir, d); isDir(p) {
			dirs = append(dirs, p)
		}
	}
	return strings.Join(dirs, ":")
}

// SearchPath is the tree's folders of programs, separated by colons.
func (t Tree) SearchPath() string {
	var dirs []string
	for _, d := range []string{"usr/sbin", "usr/bin", "sbin", "bin"} {
		if p := filepath.Join(t.Dir, d); isDir(p) {
			dirs = append(dirs, p)
		}
	}
	return strings.Join(dirs, ":")
}

// Containerd is Debian's containerd 1.6 (containerd, containerd-shim-runc-v2, ctr)
// with runc.
func (c *Cache) Containerd(ctx context.Context) (Tree, error) {
	dir, err := c.debianClosure(ctx, "containerd and runc", nil, "containerd", "runc")
	return Tree{dir}, err
}

// NodeTools is what a Kubernetes node needs beside the runtime: iptables (nft
// and legacy), nft, conntrack and ipset for kube-proxy, and ip, tcpdump, ethtool
// to look with.
func (c *Cache) NodeTools(ctx context.Context) (Tree, error) {
	dir, err := c.debianClosure(ctx, "a node's network tools", nil,
		"iptables", "nftables", "conntrack", "ipset", "iproute2", "tcpdump", "ethtool", "socat")
	return Tree{dir}, err
}

// Busybox is one static executable with ping, nc, udhcpc, wget and nslookup: what
// tests of the network look with, on machines that have none of them.
func (c *Cache) Busybox(ctx context.Context) (path string, err error) {
	dir, err := c.debianClosure(ctx, "busybox", nil, "busybox-static")
	return filepath.Join(dir, "bin", "busybox"), err
}

// PostgreSQL is Debian's PostgreSQL 15 with its client. The programs are in
// usr/lib/postgresql/15/bin of the tree and find their share folder from there.
type PostgreSQL struct {
	Tree
	Bin string // folder of postgres, initdb, pg_ctl, psql
}

// PostgreSQL unpacks the server and client, with the libraries that they link.
// Left out is what serves the packages' installation (perl, openssl, locales)
// and the just-in-time compiler (jit must stay off).
func (c *Cache) PostgreSQL(ctx context.Context) (PostgreSQL, error) {
	skip := func(name string) bool {
		return strings.Contains(name, "perl") || strings.HasPrefix(name, "libllvm") || !strings.HasPrefix(name, "lib") &&
			name != "postgresql-15" && name != "postgresql-client-15" && name != "tzdata"
	}
	dir, err := c.debianClosure(ctx, "PostgreSQL 15", skip, "postgresql-15", "postgresql-client-15")
	if err != nil {
		return PostgreSQL{}, err
	}
	return PostgreSQL{Tree{dir}, filepath.Join(dir, "usr", "lib", "postgresql", "15", "bin")}, nil
}

// AWSCLI is Debian's AWS CLI 2 with the Python that runs it.
type AWSCLI struct {
	Tree
	Python, Script string
}

// AWSCLI unpacks the AWS CLI. Debian's version does not know AWS_ENDPOINT_URL:
// give it --endpoint-url, or it calls the real AWS.
func (c *Cache) AWSCLI(ctx context.Context) (AWSCLI, error) {
	dir, err := c.debianClosure(ctx, "the AWS CLI", nil, "awscli", "python3-pkg-resources")
	if err != nil {
		return AWSCLI{}, err
	}
	return AWSCLI{Tree{dir}, filepath.Join(dir, "usr", "bin", "python3.11"), filepath.Join(dir, "usr", "bin", "aws")}, nil
}

// Argv is the command line of one call of the CLI.
func (a AWSCLI) Argv(args ...string) []string {
	// -I: neither the user's Python packages nor PYTHON* variables take part.
	return append([]string{a.Python, "-I", a.Script}, args...)
}

func isDir(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
