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
	CNIVersion   string   `json:"cniVersion"`
	Name         string   `json:"name"`
	DisableCheck bool     `json:"disableCheck"`
	Plugins      []plugin `json:"plugins"`
}

type plugin struct {
	Type          string `json:"type"`
	Name          string `json:"name"`
	VethPrefix    string `json:"vethPrefix"`
	MTU           string `json:"mtu"`
	EnforcingMode string `json:"podSGEnforcingMode"`
	LogFile       string `json:"pluginLogFile"`
	LogLevel      string `json:"pluginLogLevel"`
}

// Conflist renders the CNI configuration. CHECK is turned off: this version's executable has no CHECK.
func Conflist(c *config.Config) ([]byte, error) {
	return json.MarshalIndent(conflist{
		CNIVersion: "1.0.0", Name: "aws-cni", DisableCheck: true,
		Plugins: []plugin{{
			Type: Plugin, Name: "aws-cni", VethPrefix: c.VethPrefix, MTU: strconv.Itoa(c.MTUOfPods()),
			EnforcingMode: c.EnforcingMode, LogFile: c.PluginLogFile, LogLevel: c.PluginLogLevel,
		}},
	}, "", "  ")
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
