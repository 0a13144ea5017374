package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/branchline-cni/branchline/ipamd/config"
)

// ConflistName is the file that the container runtime finds the network by.
const ConflistName = "10-aws.conflist"

type conflist struct {
	CNIVersion  string   `json:"cniVersion"`
	CNIVersions []string `json:"cniVersions"`
	Name        string   `json:"name"`
	Plugins     []any    `json:"plugins"`
}

// header is what the list says of itself: an old runtime goes by cniVersion, one that knows cniVersions takes the newest
// of them.
func header() conflist {
	return conflist{CNIVersion: "1.0.0", CNIVersions: []string{"0.4.0", "1.0.0", "1.1.0"}, Name: "aws-cni"}
}

type plugin struct {
	Type          string `json:"type"`
	Name          string `json:"name"`
	VethPrefix    string `json:"vethPrefix"`
	MTU           string `json:"mtu"`
	EnforcingMode string `json:"podSGEnforcingMode"`
	LogFile       string `json:"pluginLogFile"`
	LogLevel      string `json:"pluginLogLevel"`
	PolicyMode    string `json:"networkPolicyMode,omitempty"`
	NoPodIPv6     bool   `json:"disablePodIPv6,omitempty"`
}

// capable is a plugin that gets something of each pod from the runtime (runtimeConfig).
type capable struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
	SNAT         bool            `json:"snat,omitempty"`
}

// egressEntry has upstream's keys, addresses and folders, so that a pod which upstream wired gives its address back to us.
type egressEntry struct {
	Type          string `json:"type"`
	Name          string `json:"name"`
	MTU           string `json:"mtu"`
	Enabled       string `json:"enabled"`
	RandomizeSNAT string `json:"randomizeSNAT"`
	IPAM          ipam   `json:"ipam"`
	LogFile       string `json:"pluginLogFile"`
	LogLevel      string `json:"pluginLogLevel"`
}

type ipam struct {
	Type    string      `json:"type"`
	Ranges  [][]ipRange `json:"ranges"`
	Routes  []route     `json:"routes"`
	DataDir string      `json:"dataDir"`
}

type ipRange struct {
	Subnet string `json:"subnet"`
}

type route struct {
	Dst string `json:"dst"`
}

// Conflist renders the CNI configuration: our plugin, then egress by the other family, host ports and bandwidth.
func Conflist(c *config.Config) ([]byte, error) {
	l := header()
	ours := plugin{
		Type: Plugin, Name: "aws-cni", VethPrefix: c.VethPrefix, MTU: strconv.Itoa(c.MTUOfPods()),
		EnforcingMode: c.EnforcingMode, LogFile: c.PluginLogFile, LogLevel: c.PluginLogLevel,
		NoPodIPv6: c.DisablePodIPv6,
	}
	if c.NetworkPolicyMode != "none" {
		ours.PolicyMode = c.NetworkPolicyMode
	}
	l.Plugins = append(l.Plugins, ours)
	if c.Egress() {
		l.Plugins = append(l.Plugins, egressOf(c))
	}
	l.Plugins = append(l.Plugins, capable{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}, SNAT: true})
	if c.Bandwidth {
		l.Plugins = append(l.Plugins, capable{Type: "bandwidth", Capabilities: map[string]bool{"bandwidth": true}})
	}
	return json.MarshalIndent(l, "", "  ")
}

func egressOf(c *config.Config) egressEntry {
	e := egressEntry{
		Type: EgressPlugin, Name: "aws-cni", MTU: strconv.Itoa(c.MTUOfPods()), Enabled: "true", RandomizeSNAT: c.RandomizeSNAT, LogLevel: c.PluginLogLevel,
		IPAM: ipam{
			Type: "host-local", DataDir: "/run/cni/v4pd/egress-v6-ipam",
			Ranges: [][]ipRange{{{Subnet: c.EgressSubnet().String()}}}, Routes: []route{{Dst: "::/0"}},
		},
		LogFile: c.V6EgressLog,
	}
	if c.IPv6 {
		e.LogFile, e.IPAM.DataDir = c.V4EgressLog, "/run/cni/v6pd/egress-v4-ipam"
		e.IPAM.Routes = []route{{Dst: "0.0.0.0/0"}}
	}
	return e
}

// WriteConflist puts the configuration in place, where it isn't there already as it should be. It says whether the file
// was written. The file stays when the agent ends: pods must be torn down without it, too.
func WriteConflist(c *config.Config) (written bool, err error) {
	b, err := Conflist(c)
	if err != nil {
		return false, fmt.Errorf("render %s: %w", ConflistName, err)
	}
	b = append(b, '\n')
	name := filepath.Join(c.HostConfDir, ConflistName)
	if old, err := os.ReadFile(name); err == nil && bytes.Equal(old, b) {
		return false, nil
	}
	err = replace(name, 0o644, func(w io.Writer) error {
		_, err := w.Write(b)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("write %s: %w", name, err)
	}
	return true, nil
}
