package install

import (
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/plugins/egress"
	"github.com/branchline-cni/branchline/plugins/eni"
)

func cfg(t *testing.T, env map[string]string) *config.Config {
	t.Helper()
	c, _, err := config.Load(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

func write(t *testing.T, name, content string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
}

func TestInstallReplacesExecutablesAndWritesSettings(t *testing.T) {
	src, dst, sys, links := t.TempDir(), t.TempDir(), t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "aws-cni"), "new", 0o755)
	write(t, filepath.Join(src, "loopback"), "lo", 0o755)
	write(t, filepath.Join(src, "README"), "text", 0o644)
	write(t, filepath.Join(dst, "aws-cni"), "old", 0o700)
	write(t, filepath.Join(dst, "other"), "theirs", 0o755)
	running := filepath.Join(t.TempDir(), "running") // who runs the old one goes on running it
	if err := os.Link(filepath.Join(dst, "aws-cni"), running); err != nil {
		t.Fatal(err)
	}
	c := cfg(t, map[string]string{"HOST_CNI_BIN_PATH": dst, "ENABLE_POD_ENI": "true"})
	for _, s := range SettingsFor(c, false) {
		write(t, filepath.Join(sys, s.Path), "9\n", 0o644)
	}
	for range 2 { // an init container runs again and again
		if err := Run(Options{SourceDir: src, SysctlDir: sys, LinksDir: links, Config: c, Log: quiet}); err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{"aws-cni": "new", "loopback": "lo", "other": "theirs"} {
		b, err := os.ReadFile(filepath.Join(dst, name))
		info, _ := os.Stat(filepath.Join(dst, name))
		if err != nil || string(b) != want || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if b, err := os.ReadFile(running); err != nil || string(b) != "old" {
		t.Errorf("the old executable is written over: %q, %v", b, err)
	}
	if entries, _ := os.ReadDir(dst); len(entries) != 3 {
		t.Errorf("left behind: %v", entries)
	}
	if b, _ := os.ReadFile(filepath.Join(sys, "net/ipv4/tcp_early_demux")); string(b) != "0" {
		t.Errorf("tcp_early_demux is %q", b)
	}
	if err := Executables(t.TempDir(), dst, quiet); err == nil {
		t.Error("a directory without aws-cni was accepted")
	}
}

func TestP31EarlyDemuxIsOffOnlyWhereStrictBranchPodsNeedIt(t *testing.T) {
	for _, c := range []struct {
		podENI, disable string
		left            bool
		tcp, udp        string
	}{
		{"false", "", false, "1", "1"}, {"true", "", false, "0", "0"}, {"false", "", true, "0", "0"},
		{"true", "false", false, "1", "0"}, {"false", "true", false, "0", "1"}, {"true", "true", false, "0", "0"},
	} {
		s := SettingsFor(cfg(t, map[string]string{"ENABLE_POD_ENI": c.podENI, "DISABLE_TCP_EARLY_DEMUX": c.disable}), c.left)
		for _, want := range []Setting{{"net/ipv4/tcp_early_demux", c.tcp}, {"net/ipv4/udp_early_demux", c.udp}, {"net/ipv4/conf/all/src_valid_mark", "1"}} {
			if !slices.Contains(s, want) {
				t.Errorf("%+v: %v has no %v", c, s, want)
			}
		}
	}
}

func TestConflistIsWholeAndWrittenOnce(t *testing.T) {
	dir := t.TempDir()
	c := cfg(t, map[string]string{"HOST_CNI_CONFDIR_PATH": dir, "POD_MTU": "1400", "DISABLE_POD_V6": "true"})
	if written, err := WriteConflist(c); !written || err != nil {
		t.Fatal(written, err)
	}
	if written, err := WriteConflist(c); written || err != nil {
		t.Fatal("written again without a change", err)
	}
	b, err := os.ReadFile(filepath.Join(dir, "10-aws.conflist"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	p := got["plugins"].([]any)[0].(map[string]any)
	if got["name"] != "aws-cni" || got["cniVersion"] != "1.0.0" || p["type"] != "aws-cni" || p["mtu"] != "1400" || p["vethPrefix"] != "eni" || p["podSGEnforcingMode"] != "strict" || p["disablePodIPv6"] != true {
		t.Errorf("%s", b)
	}
	if entries, _ := os.ReadDir(dir); len(entries) != 1 {
		t.Errorf("left behind: %v", entries)
	}
}

// What the list promises every executable of the chain must keep: a runtime takes the newest version that it is offered.
func TestTheConflistOffersWhatTheExecutablesKnow(t *testing.T) {
	l := header()
	for _, v := range append(l.CNIVersions, l.CNIVersion) {
		if !slices.Contains(eni.Versions().SupportedVersions(), v) || !slices.Contains(egress.Versions().SupportedVersions(), v) {
			t.Errorf("%s: aws-cni knows %q, egress-cni %q", v, eni.Versions().SupportedVersions(), egress.Versions().SupportedVersions())
		}
	}
}

func TestTheChainFollowsTheConfiguration(t *testing.T) {
	for _, tc := range []struct {
		env   map[string]string
		ipv6  bool
		chain []string
	}{
		{nil, false, []string{"aws-cni", "portmap"}},
		{map[string]string{"ENABLE_BANDWIDTH_PLUGIN": "true"}, false, []string{"aws-cni", "portmap", "bandwidth"}},
		{map[string]string{"ENABLE_V6_EGRESS": "true"}, false, []string{"aws-cni", "egress-cni", "portmap"}},
		{map[string]string{"ENABLE_V6_EGRESS": "true", "ENABLE_V4_EGRESS": "false"}, true, []string{"aws-cni", "portmap"}},
		{nil, true, []string{"aws-cni", "egress-cni", "portmap"}},
	} {
		c := cfg(t, tc.env)
		c.IPv6 = tc.ipv6
		b, err := Conflist(c)
		if err != nil {
			t.Fatal(err)
		}
		var list struct {
			Plugins []struct {
				Type         string
				Capabilities map[string]bool
				SNAT         *bool
			}
		}
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		var chain []string
		for _, p := range list.Plugins {
			chain = append(chain, p.Type)
			switch p.Type {
			case "portmap":
				if !p.Capabilities["portMappings"] || p.SNAT == nil || !*p.SNAT {
					t.Errorf("%s", b)
				}
			case "bandwidth":
				if !p.Capabilities["bandwidth"] || p.SNAT != nil {
					t.Errorf("%s", b)
				}
			}
		}
		if !slices.Equal(chain, tc.chain) {
			t.Errorf("%v, IPv6 %t: %q, want %q", tc.env, tc.ipv6, chain, tc.chain)
		}
	}
}

func TestEgressTakesItsPartOfTheConflist(t *testing.T) {
	for ipv6, want := range map[bool]egress.Config{
		false: {Family: egress.IPv6, DataDir: "/run/cni/v4pd/egress-v6-ipam", LogFile: "/var/log/x6"},
		true:  {Family: egress.IPv4, DataDir: "/run/cni/v6pd/egress-v4-ipam", LogFile: "/var/log/x4"},
	} {
		c := cfg(t, map[string]string{
			"ENABLE_V6_EGRESS": "true", "AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE": "/var/log/x4", "AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE": "/var/log/x6",
		})
		c.IPv6 = ipv6
		b, err := Conflist(c)
		if err != nil {
			t.Fatal(err)
		}
		var list struct{ Plugins []json.RawMessage }
		if err := json.Unmarshal(b, &list); err != nil {
			t.Fatal(err)
		}
		got, err := egress.ParseConfig(list.Plugins[1])
		if err != nil || got.Family != want.Family || got.DataDir != want.DataDir || got.LogFile != want.LogFile || !got.Enabled || got.MTU != c.MTUOfPods() {
			t.Errorf("IPv6 %t: %+v, %v", ipv6, got, err)
		}
		for _, v := range append(header().CNIVersions, header().CNIVersion) {
			if !slices.Contains(egress.Versions().SupportedVersions(), v) {
				t.Errorf("egress-cni does not know %s", v)
			}
		}
	}
}

func TestANodeThatForwardsIPv6KeepsItsRouters(t *testing.T) {
	src, sys, links := t.TempDir(), t.TempDir(), t.TempDir()
	write(t, filepath.Join(src, "aws-cni"), "", 0o755)
	write(t, filepath.Join(links, "eth0", "device"), "", 0o644)
	if err := os.Mkdir(filepath.Join(links, "enib5faff8a083"), 0o755); err != nil {
		t.Fatal(err)
	}
	want := map[string]string{"all/forwarding": "1", "all/disable_ipv6": "0", "default/disable_ipv6": "0", "eth0/accept_ra": "2"}
	for name := range want {
		write(t, filepath.Join(sys, "net/ipv6/conf", name), "9", 0o644)
	}
	ipv6 := map[string]string{"ENABLE_IPv6": "true", "ENABLE_IPv4": "false", "ENABLE_V4_EGRESS": "false"}
	for on, set := range map[string]bool{"false": false, "true": true, "an IPv6 cluster": true} {
		env := map[string]string{"ENABLE_V6_EGRESS": on}
		if on == "an IPv6 cluster" {
			env = ipv6
		}
		env["HOST_CNI_BIN_PATH"] = t.TempDir()
		c := cfg(t, env)
		for _, s := range SettingsFor(c, false) {
			write(t, filepath.Join(sys, s.Path), "9", 0o644)
		}
		if err := Run(Options{SourceDir: src, SysctlDir: sys, LinksDir: links, Config: c, Log: quiet}); err != nil {
			t.Fatal(err)
		}
		for name, value := range want {
			b, err := os.ReadFile(filepath.Join(sys, "net/ipv6/conf", name))
			if err != nil || (string(b) == value) != set {
				t.Errorf("ENABLE_V6_EGRESS=%s: %s is %q, %v", on, name, b, err)
			}
			write(t, filepath.Join(sys, "net/ipv6/conf", name), "9", 0o644)
		}
	}
}

// What the agent accepts the executable must take: otherwise one `kubectl set env` stops every pod of the cluster, and
// the agents look healthy.
func TestTheExecutableTakesWhatTheAgentAccepts(t *testing.T) {
	values := map[string][]string{
		"AWS_VPC_K8S_PLUGIN_LOG_LEVEL":  {"debug", "DEBUG", "Info", "warn", "WARNING", "error", "FATAL", "trace", "off"},
		"AWS_VPC_K8S_PLUGIN_LOG_FILE":   {"stderr", "stdout", "/var/log/x.log", "/a/../b", "x.log"},
		"AWS_VPC_K8S_CNI_VETHPREFIX":    {"eni", "e", "abcd", "ABC", "abcde", "en1", "1en", "e-i", "eth", "vlan", "lo", "ETH", "é"},
		"NETWORK_POLICY_ENFORCING_MODE": {"none", "strict", "standard", "lenient", "Strict"},
		"AWS_VPC_ENI_MTU":               {"575", "576", "1500", "9001", "9002", "+1500", "01500"},
		"POD_MTU":                       {"575", "576", "1500", "9001", "9002", "+1500", "01500"},
	}
	accepted := map[string]int{}
	for name, list := range values {
		for _, value := range list {
			c, _, err := config.Load(func(k string) (string, bool) { return value, k == name })
			if err != nil {
				continue
			}
			accepted[name]++
			b, err := Conflist(c)
			if err != nil {
				t.Fatal(err)
			}
			var list struct{ Plugins []json.RawMessage }
			if err := json.Unmarshal(b, &list); err != nil {
				t.Fatal(err)
			}
			got, err := eni.ParseConfig(list.Plugins[0])
			if err != nil || len(got.Ignored) > 0 {
				t.Errorf("%s=%s: the executable says %v, ignores %q", name, value, err, got.Ignored)
			}
			if got.VethPrefix != c.VethPrefix || got.MTU != c.MTUOfPods() || got.LogFile != c.PluginLogFile || got.PolicyAgent.Mode != policyMode(c) {
				t.Errorf("%s=%s: the executable works with %+v", name, value, got)
			}
		}
	}
	for name, list := range values {
		if n := accepted[name]; n < 2 || n == len(list) {
			t.Errorf("%s: %d of %q are accepted: the test says nothing", name, n, list)
		}
	}
}

func policyMode(c *config.Config) string {
	if c.NetworkPolicyMode == "none" {
		return ""
	}
	return c.NetworkPolicyMode
}
