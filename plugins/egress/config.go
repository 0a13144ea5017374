package egress

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containernetworking/cni/pkg/types"
)

// What holds where the configuration says nothing.
const (
	defaultMTU     = 9001
	minMTU, maxMTU = 576, 9001
	minMTU6        = 1280 // RFC 8200, section 5
)

// Config is our entry of the conflist, with upstream's keys.
type Config struct {
	CNIVersion string
	Name       string
	// Enabled is false where the plugin passes everything on.
	Enabled bool
	Family  Family
	// Subnet is what the pods' addresses are of; DataDir has host-local's files.
	Subnet  netip.Prefix
	DataDir string
	MTU     int
	// NodeIP is what pods are translated to. Invalid, as the agent leaves it: the address of the link they leave by.
	NodeIP netip.Addr
	// RandomizeSNAT says how source ports are chosen: prng, hashrandom or none.
	RandomizeSNAT     string
	LogFile, LogLevel string
	PrevResult        json.RawMessage
	// Valid are the attachments that GC leaves alone.
	Valid []types.GCAttachment
}

type configJSON struct {
	CNIVersion    string          `json:"cniVersion"`
	Name          string          `json:"name"`
	MTU           string          `json:"mtu"`
	Enabled       string          `json:"enabled"`
	NodeIP        string          `json:"nodeIP"`
	RandomizeSNAT string          `json:"randomizeSNAT"`
	LogFile       string          `json:"pluginLogFile"`
	LogLevel      string          `json:"pluginLogLevel"`
	PrevResult    json.RawMessage `json:"prevResult"`
	IPAM          struct {
		Type   string `json:"type"`
		Ranges [][]struct {
			Subnet string `json:"subnet"`
		} `json:"ranges"`
		DataDir string `json:"dataDir"`
	} `json:"ipam"`
	// The specification's key, and the one that libcni also sends.
	Valid  []types.GCAttachment `json:"cni.dev/valid-attachments"`
	Valid2 []types.GCAttachment `json:"cni.dev/attachments"`
}

// ParseConfig reads the configuration and tells the first thing that is wrong with it. What it returns is usable for a
// DEL even then.
func ParseConfig(stdin []byte) (Config, error) {
	var raw configJSON
	var first error
	report := func(err error) {
		if first == nil {
			first = err
		}
	}
	if err := json.Unmarshal(stdin, &raw); err != nil {
		var wrong *json.UnmarshalTypeError
		if errors.As(err, &wrong) {
			report(invalidConfig(wrong.Field, "want a JSON %s, got %s", wrong.Type.Kind(), wrong.Value))
		} else {
			report(types.NewError(types.ErrDecodingFailure, "network configuration is not JSON: "+err.Error(), ""))
		}
	}
	c := Config{
		CNIVersion: raw.CNIVersion, Name: raw.Name, Enabled: true, MTU: defaultMTU, RandomizeSNAT: "prng",
		LogFile: raw.LogFile, LogLevel: raw.LogLevel, Valid: append(raw.Valid, raw.Valid2...),
	}
	if string(raw.PrevResult) != "null" {
		c.PrevResult = raw.PrevResult
	}
	if raw.Enabled != "" {
		on, err := strconv.ParseBool(raw.Enabled)
		if err != nil {
			report(invalidConfig("enabled", "%q is not true or false", raw.Enabled))
		}
		c.Enabled = on
	}
	c.parseIPAM(raw, report)
	if c.Name == "" || strings.ContainsAny(c.Name, "/\x00") || strings.HasPrefix(c.Name, ".") {
		report(invalidConfig("name", "%q can't be a folder of host-local's", c.Name))
		c.Name = ""
	}
	low := minMTU
	if c.Family == IPv6 {
		low = minMTU6
	}
	if v := raw.MTU; v != "" {
		if n, err := strconv.Atoi(v); err != nil || n < low || n > maxMTU {
			report(invalidConfig("mtu", "%q is not a number from %d to %d", v, low, maxMTU))
		} else {
			c.MTU = n
		}
	}
	if v := raw.NodeIP; v != "" {
		if a, err := netip.ParseAddr(v); err != nil || FamilyOf(a) != c.Family || !a.IsGlobalUnicast() || a.Zone() != "" || a.Is4In6() {
			report(invalidConfig("nodeIP", "%q is no global unicast address of the family of %s", v, c.Subnet))
		} else {
			c.NodeIP = a
		}
	}
	switch v := raw.RandomizeSNAT; v {
	case "":
	case "prng", "hashrandom", "none":
		c.RandomizeSNAT = v
	default:
		report(invalidConfig("randomizeSNAT", "%q is not prng, hashrandom or none", v))
	}
	// A bad log setting keeps no pod waiting.
	if c.LogFile != "stderr" && !filepath.IsAbs(c.LogFile) {
		c.LogFile = fmt.Sprintf("/var/log/aws-routed-eni/egress-v%d-plugin.log", c.Family)
	}
	return c, first
}

func (c *Config) parseIPAM(raw configJSON, report func(error)) {
	c.Family = IPv4
	if t := raw.IPAM.Type; t != "host-local" {
		report(invalidConfig("ipam.type", "%q is not host-local", t))
	}
	if r := raw.IPAM.Ranges; len(r) != 1 || len(r[0]) != 1 {
		report(invalidConfig("ipam.ranges", "want one range of one subnet"))
	} else if p, err := netip.ParsePrefix(r[0][0].Subnet); err != nil || p != p.Masked() || p.Addr().Is4In6() || p.Addr().BitLen()-p.Bits() < 2 {
		report(invalidConfig("ipam.ranges", "%q is not a subnet with room for pods", r[0][0].Subnet))
	} else {
		c.Subnet, c.Family = p, FamilyOf(p.Addr())
	}
	if d := raw.IPAM.DataDir; !filepath.IsAbs(d) || strings.ContainsRune(d, 0) {
		report(invalidConfig("ipam.dataDir", "%q is not an absolute path", d))
	} else {
		c.DataDir = filepath.Clean(d)
	}
}

func invalidConfig(field, format string, args ...any) error {
	return types.NewError(types.ErrInvalidNetworkConfig, fmt.Sprintf("network configuration of egress-cni: %s: %s", field, fmt.Sprintf(format, args...)), "")
}
