//go:build lab

package artifacts

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runIn runs a program of the cache and returns what it printed.
func runIn(t *testing.T, env []string, argv ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %v\n%s", argv, err, out)
	}
	return string(out)
}

func openCache(t *testing.T) *Cache {
	t.Helper()
	c, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestUnpackedProgramsRun(t *testing.T) {
	c := openCache(t)
	containerd, err := c.Containerd(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	tools, err := c.NodeTools(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	containerd2, err := c.Containerd2(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		tree Tree
		argv []string
		want string
	}{
		{containerd, []string{"containerd", "--version"}, "1.6."},
		{containerd, []string{"ctr", "--version"}, "1.6."},
		{containerd, []string{"runc", "--version"}, "runc version"},
		{containerd2, []string{"containerd", "--version"}, " v2."},
		{containerd2, []string{"containerd-shim-runc-v2", "-v"}, " v2."},
		{tools, []string{"xtables-nft-multi", "iptables", "--version"}, "nf_tables"},
		{tools, []string{"nft", "--version"}, "nftables"},
		{tools, []string{"conntrack", "--version"}, "conntrack"},
		{tools, []string{"tcpdump", "--version"}, "tcpdump"},
	} {
		t.Run(tc.argv[0]+" "+tc.want, func(t *testing.T) {
			path, err := tc.tree.Path(tc.argv[0])
			if err != nil {
				t.Fatal(err)
			}
			if got := runIn(t, tc.tree.Env(), append([]string{path}, tc.argv[1:]...)...); !strings.Contains(got, tc.want) {
				t.Errorf("%s printed %q, want %q in it", tc.argv[0], got, tc.want)
			}
		})
	}
}

func TestPostgreSQLRuns(t *testing.T) {
	pg, err := openCache(t).PostgreSQL(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"postgres", "initdb", "pg_ctl", "psql"} {
		if got := runIn(t, pg.Env(), filepath.Join(pg.Bin, p), "--version"); !strings.Contains(got, " 15.") {
			t.Errorf("%s --version printed %q, want version 15", p, got)
		}
	}
}

func TestAWSCLIRuns(t *testing.T) {
	cli, err := openCache(t).AWSCLI(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := runIn(t, cli.Env(), cli.Argv("--version")...); !strings.HasPrefix(got, "aws-cli/2.") {
		t.Errorf("aws --version printed %q, want aws-cli/2", got)
	}
}

func TestKernelHasWhatTheLabNeeds(t *testing.T) {
	k, err := openCache(t).Kernel(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{k.Image, filepath.Join(k.ModulesDir, "lib", "modules", k.Version, "modules.dep.bin")} {
		if info, err := os.Stat(f); err != nil || info.Size() == 0 {
			t.Errorf("%s: %v", f, err)
		}
	}
}

func TestKubernetesSaysItsVersion(t *testing.T) {
	path, err := openCache(t).Hyperkube(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	root, err := Checkout()
	if err != nil {
		t.Fatal(err)
	}
	want, err := requiredVersion(filepath.Join(root, "lab", "kube", "hyperkube", "go.mod"), "k8s.io/kubernetes")
	if err != nil {
		t.Fatal(err)
	}
	for _, component := range []string{"kubelet", "kube-apiserver"} {
		if got := runIn(t, nil, path, component, "--version"); !strings.Contains(got, want) {
			t.Errorf("%s --version printed %q, want %s", component, got, want)
		}
	}
}

func TestCoreDNSHasThePluginsOfTheLab(t *testing.T) {
	path, err := openCache(t).CoreDNS(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := runIn(t, nil, path, "-plugins")
	for _, want := range []string{"errors", "forward", "health", "kubernetes", "ready", "cache", "loop"} {
		if !strings.Contains(got, want) {
			t.Errorf("coredns -plugins printed %q, want %s in it", got, want)
		}
	}
}
