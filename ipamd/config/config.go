package config

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/ipamd/placement"
)

// Enforcing modes of security groups for pods (POD_SECURITY_GROUP_ENFORCING_MODE).
const (
	ModeStrict   = "strict"
	ModeStandard = "standard"
)

// Demux says what is done about TCP early demultiplexing (DISABLE_TCP_EARLY_DEMUX).
type Demux int

const (
	// DemuxAutomatic turns it off where strict branch pods need that, and only there. It is what no value means.
	DemuxAutomatic Demux = iota
	// DemuxOff writes 0.
	DemuxOff
	// DemuxOn writes 1.
	DemuxOn
)

// Config is the environment, parsed. Durations and sizes are in their types or names.
type Config struct {
	PodENI        bool
	EnforcingMode string
	IPv4, IPv6    bool // which family pods have: exactly one
	TCPEarlyDemux Demux
	NodeLocal     []netip.Prefix // what strict branch pods reach on their node, of both families
	KubeletLocal  bool
	WarmENITarget int
	// WarmIPTarget and MinimumIPTarget count where either is above 0, and come before WarmENITarget then.
	WarmIPTarget, MinimumIPTarget int
	// PrefixDelegation has ENIs get prefixes, WarmPrefixTarget of them ahead.
	PrefixDelegation bool
	WarmPrefixTarget int
	MaxENI           int // 0: the instance type's limit
	// CustomNetworking makes ENIs after the node's ENIConfig, which the label or annotation of these keys names.
	CustomNetworking                    bool
	ENIConfigLabel, ENIConfigAnnotation string
	// SubnetDiscovery makes ENIs in other subnets, too, by their tags.
	SubnetDiscovery bool
	// ENIsOfCordoned has ENIs come and go on a cordoned node.
	ENIsOfCordoned bool
	// ManageUntagged uses ENIs that the agent did not make.
	ManageUntagged bool
	// NoProvisioning asks EC2 for nothing and gives it nothing back; IMDSOnly never speaks to EC2.
	NoProvisioning, IMDSOnly bool
	CoolDown                 time.Duration
	KeepSurplus              time.Duration // not above CoolDown: nothing is kept for longer than an address rests
	LeakSweepOff             bool
	ENIMTU                   int
	PodMTU                   int // 0: ENIMTU
	VethPrefix               string
	LogLevel                 slog.Level
	LogFile                  string // path, "stdout" or "stderr"
	PluginLogLevel           string
	PluginLogFile            string
	Introspection            string // host:port
	NoIntrospect             bool
	NoMetrics                bool
	ENITags                  map[string]string
	ClusterName              string
	APIServer                string // URL, or empty for the in-cluster address
	NodeName                 string
	PodName                  string
	ManifestVersion          string
	EC2Endpoint              string // URL, or empty for AWS's own
	HTTPTimeout              time.Duration
	HostBinDir               string
	HostConfDir              string
	// ExternalSNAT is set where somebody else translates what leaves the VPC.
	ExternalSNAT                  bool
	ExcludeSNAT, ExternalServices CIDRs
	RandomizeSNAT                 string // prng, hashrandom or none
	// NodePort has answers to what came in by the primary ENI leave by it; ConnMark marks such connections.
	NodePort bool
	ConnMark uint32
	// NetworkPolicyMode is none, strict or standard (NETWORK_POLICY_ENFORCING_MODE).
	NetworkPolicyMode string
	// Bandwidth chains the bandwidth plugin.
	Bandwidth bool
	// DisablePodIPv6 turns IPv6 off in new pods. AnnotatePodIP has pods carry their address in an annotation.
	DisablePodIPv6, AnnotatePodIP bool
	// MultiNIC gives pods that ask for it an interface on each network card of the instance.
	MultiNIC bool
	// V4Egress gives pods of IPv6 clusters a way out by IPv4, V6Egress the reverse.
	V4Egress, V6Egress       bool
	V4EgressLog, V6EgressLog string
	// BackingStore is the checkpoint of upstream's agent.
	BackingStore string

	values map[string]any // of every variable that has one, parsed
}

// The addresses of egress-cni, which mean nothing outside their node.
var (
	egressIPv4 = netip.MustParsePrefix("169.254.172.0/22")
	egressIPv6 = netip.MustParsePrefix("fd00::ac:00/118")
)

// IsEgress says whether an address is one of egress-cni's, of either family. It belongs to no ENI and is none of the agent's.
func IsEgress(a netip.Addr) bool { return egressIPv4.Contains(a) || egressIPv6.Contains(a) }

// EgressSubnet is what egress-cni gives pods addresses of: of the family that they don't have. Not valid without Egress.
func (c *Config) EgressSubnet() netip.Prefix {
	switch {
	case !c.Egress():
		return netip.Prefix{}
	case c.IPv6:
		return egressIPv4
	}
	return egressIPv6
}

// Egress says whether pods get the other family for what they send out.
func (c *Config) Egress() bool { return c.IPv6 && c.V4Egress || !c.IPv6 && c.V6Egress }

// MTUOfPods is what the pods' interfaces get.
func (c *Config) MTUOfPods() int {
	if c.PodMTU != 0 {
		return c.PodMTU
	}
	return c.ENIMTU
}

// NodeLabels and NodeAnnotations are keys of the Node that decide which ENIConfig is used.
func (c *Config) NodeLabels() []string {
	if !c.CustomNetworking {
		return nil
	}
	return []string{placement.LabelExternal, c.ENIConfigLabel}
}

// NodeAnnotations are as NodeLabels.
func (c *Config) NodeAnnotations() []string {
	if !c.CustomNetworking {
		return nil
	}
	return []string{c.ENIConfigAnnotation}
}

// Frozen says whether the instance's ENIs and addresses are somebody else's to provide.
func (c *Config) Frozen() bool { return c.NoProvisioning || c.IMDSOnly }

// StrictBranchPods says whether branch pods in strict mode may come to run on this node.
func (c *Config) StrictBranchPods() bool { return c.PodENI && c.EnforcingMode == ModeStrict }

// Error is one variable that can't be accepted.
type Error struct {
	Variable, Value string
	Problem         string // what is wrong with it
	Accepted        string // what would be accepted
}

func (e *Error) Error() string {
	return fmt.Sprintf("%s=%q: %s; accepted: %s", e.Variable, e.Value, e.Problem, e.Accepted)
}

// Load reads the environment through lookup (os.LookupEnv). An empty value counts as not set. The error joins one
// *Error for each variable that is wrong; warnings are for people and never a reason to stop.
func Load(lookup func(string) (string, bool)) (c *Config, warnings []string, err error) {
	c = &Config{ENITags: map[string]string{}, NetworkPolicyMode: "none", ManageUntagged: true, values: map[string]any{}}
	var errs []error
	for _, v := range Variables {
		value, isSet := lookup(v.Name)
		value = strings.TrimSpace(value)
		if isSet = isSet && value != ""; !isSet {
			value = v.Default
		}
		if value == "" {
			continue
		}
		parsed, perr := v.kind.parse(value)
		if perr != nil {
			errs = append(errs, &Error{v.Name, value, perr.Error(), v.Accepted()})
			continue
		}
		c.values[v.Name] = parsed
		switch {
		case v.Deprecated && isSet:
			warnings = append(warnings, fmt.Sprintf("%s=%q is deprecated and has no effect", v.Name, value))
		case v.assign != nil:
			v.assign(c, parsed)
		}
	}
	if _, said := c.values[keepSurplus]; !said {
		c.KeepSurplus = 10 * c.CoolDown // who shortens the one wants the other sooner, too
	}
	errs = append(errs, c.check()...)
	if len(errs) > 0 {
		return nil, warnings, errors.Join(errs...)
	}
	if w := c.familyWarning(); w != "" {
		warnings = append(warnings, w)
	}
	if c.TCPEarlyDemux == DemuxOn && c.StrictBranchPods() {
		warnings = append(warnings, `DISABLE_TCP_EARLY_DEMUX="false" keeps TCP early demux on: kubelet's TCP and HTTP probes of branch pods in strict mode will fail; unset it to have it turned off where that is needed`)
	}
	return c, warnings, nil
}

// check holds what needs more than one variable.
func (c *Config) check() (errs []error) {
	if c.PodMTU > c.ENIMTU && c.ENIMTU > 0 {
		errs = append(errs, &Error{"POD_MTU", fmt.Sprint(c.PodMTU), "more than the ENIs carry", fmt.Sprintf("at most AWS_VPC_ENI_MTU (%d)", c.ENIMTU)})
	}
	if c.IMDSOnly && c.PodENI {
		errs = append(errs, &Error{"ENABLE_IMDS_ONLY_MODE", "true", "only EC2 can tell which ENI is the trunk that ENABLE_POD_ENI needs", "false where ENABLE_POD_ENI is true"})
	}
	if c.DisablePodIPv6 && (c.IPv6 || c.V6Egress) {
		errs = append(errs, &Error{"DISABLE_POD_V6", "true", "pods need the IPv6 that ENABLE_IPv6 or ENABLE_V6_EGRESS gives them", "false where one of the two is true"})
	}
	return append(errs, c.checkFamily()...)
}

// Tags returns a copy of the additional tags for ENIs.
func (c *Config) Tags() map[string]string { return maps.Clone(c.ENITags) }
