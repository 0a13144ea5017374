package eni

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
)

// What holds where the configuration says nothing.
const (
	defaultVethPrefix = "eni"
	defaultMTU        = 9001
	defaultLogFile    = "/var/log/aws-routed-eni/plugin.log"
	minMTU, maxMTU    = 576, 9001
	maxSocketPath     = 107
)

// Config is our entry of the conflist. Fields of other plugins, and of the runtime, are passed over.
type Config struct {
	CNIVersion string
	Name       string
	// VethPrefix starts the host veths' names of regular pods: 1 to 4 letters, not eth, vlan or lo. Default eni.
	VethPrefix string
	// MTU of the pods' links, 576 to 9001. Default 9001.
	MTU int
	// DisablePodIPv6 turns IPv6 off in new pods.
	DisablePodIPv6 bool
	// LogFile is an absolute path, or "stderr". Default, also in the place of anything else: /var/log/aws-routed-eni/plugin.log.
	LogFile string
	// LogLevel is debug, info, warn (or warning) or error (or fatal). Default, also in the place of anything else: info.
	LogLevel string
	// Ignored says which of the log's settings are not used, and why: no pod is kept waiting for its log's sake.
	Ignored []string
	// Socket is where the node agent listens. Default rpc.SocketPath.
	Socket string
	// PolicyAgent is the network policy agent's part.
	PolicyAgent PolicyAgent
	// PrevResult is the result of our ADD, in a DEL or CHECK; nil when the runtime has none.
	PrevResult json.RawMessage
}

type configJSON struct {
	CNIVersion         string          `json:"cniVersion"`
	Name               string          `json:"name"`
	VethPrefix         string          `json:"vethPrefix"`
	MTU                string          `json:"mtu"`
	PodSGEnforcingMode string          `json:"podSGEnforcingMode"`
	DisablePodIPv6     bool            `json:"disablePodIPv6"`
	PluginLogFile      string          `json:"pluginLogFile"`
	PluginLogLevel     string          `json:"pluginLogLevel"`
	IPAMDSocket        string          `json:"ipamdSocket"`
	PrevResult         json.RawMessage `json:"prevResult"`
	policyAgentJSON
}

// ParseConfig reads the configuration and tells the first thing that is wrong with it. What it returns is usable even
// then, with defaults in the place of what is wrong: a DEL must not fail because somebody has broken the conflist since
// its ADD.
func ParseConfig(stdin []byte) (Config, error) {
	c := Config{VethPrefix: defaultVethPrefix, MTU: defaultMTU, LogFile: defaultLogFile, LogLevel: "info", Socket: rpc.SocketPath}
	var raw configJSON
	var first error
	report := func(err error) {
		if first == nil {
			first = err
		}
	}
	// The decoder goes on after a wrong type and fills in the other fields.
	if err := json.Unmarshal(stdin, &raw); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			report(invalidConfig(wrong.Field, "want a JSON %s, got %s", wrong.Type.Kind(), wrong.Value))
		} else {
			report(types.NewError(types.ErrDecodingFailure, "network configuration is not JSON: "+err.Error(), ""))
		}
	}
	c.CNIVersion, c.Name, c.DisablePodIPv6 = raw.CNIVersion, raw.Name, raw.DisablePodIPv6
	if string(raw.PrevResult) != "null" {
		c.PrevResult = raw.PrevResult
	}
	if v := raw.VethPrefix; v != "" {
		if err := datapath.CheckVethPrefix(v); err != nil {
			report(invalidConfig("vethPrefix", "%v", err))
		} else {
			c.VethPrefix = v
		}
	}
	if v := raw.MTU; v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < minMTU || n > maxMTU {
			report(invalidConfig("mtu", "%q is not a number from %d to %d", v, minMTU, maxMTU))
		} else {
			c.MTU = n
		}
	}
	if v := raw.PodSGEnforcingMode; v != "" && v != "strict" && v != "standard" {
		// What a pod gets is the agent's decision, by pod; this tells people, and other programs, of new ones.
		report(invalidConfig("podSGEnforcingMode", "%q is neither strict nor standard", v))
	}
	if v := raw.PluginLogFile; v != "" {
		if v != "stderr" && !filepath.IsAbs(v) {
			c.Ignored = append(c.Ignored, fmt.Sprintf("pluginLogFile %q is neither an absolute path nor stderr", v))
		} else {
			c.LogFile = v
		}
	}
	if v := raw.PluginLogLevel; v != "" {
		switch level := strings.ToLower(v); level {
		case "debug", "info", "warn", "error":
			c.LogLevel = level
		case "warning":
			c.LogLevel = "warn"
		case "fatal":
			c.LogLevel = "error"
		default:
			c.Ignored = append(c.Ignored, fmt.Sprintf("pluginLogLevel %q is not debug, info, warn, error or fatal", v))
		}
	}
	if v := raw.IPAMDSocket; v != "" {
		if !filepath.IsAbs(v) || len(v) > maxSocketPath || strings.ContainsRune(v, 0) {
			report(invalidConfig("ipamdSocket", "%q is not an absolute path of at most %d bytes", v, maxSocketPath))
		} else {
			c.Socket = v
		}
	}
	c.PolicyAgent = raw.policyAgentJSON.parse(report)
	return c, first
}

// lockPath is beside the agent's socket: a directory that is emptied at boot and that root alone can write to.
func (c Config) lockPath() string { return filepath.Join(filepath.Dir(c.Socket), "cni.lock") }
