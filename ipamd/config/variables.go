package config

import (
	"fmt"
	"log/slog"
	"strings"
	"time"
)

// Variable is one row of the table of environment variables.
type Variable struct {
	Name    string
	Default string // empty: not set
	Meaning string // for people; one line
	// Deprecated variables are accepted with a warning, whatever their value, and have no effect.
	Deprecated bool

	kind   kind
	assign func(*Config, any)
}

// Accepted says what values can be parsed.
func (v Variable) Accepted() string { return v.kind.accepted }

func into[T any](field func(*Config) *T) func(*Config, any) {
	return func(c *Config, v any) { *field(c) = v.(T) }
}

func acted[T any](name, def string, k kind, field func(*Config) *T, meaning string) Variable {
	return Variable{Name: name, Default: def, Meaning: meaning, kind: k, assign: into(field)}
}

func deprecated(name string, meaning string) Variable {
	return Variable{Name: name, Meaning: meaning, Deprecated: true, kind: text}
}

const keepSurplus = "BRANCHLINE_KEEP_SURPLUS"

// Variables is every variable that the agent and its init container know, in the order of the documentation.
var Variables = []Variable{
	acted("ENABLE_POD_ENI", "false", boolean, func(c *Config) *bool { return &c.PodENI }, "Security groups for pods: the node asks for a trunk ENI and wires branch pods."),
	acted("POD_SECURITY_GROUP_ENFORCING_MODE", ModeStrict, oneOf(ModeStrict, ModeStandard), func(c *Config) *string { return &c.EnforcingMode }, "Which traffic of branch pods passes their security groups: strict all of it, standard what leaves the node. Pods keep the mode that they were wired in."),
	{Name: "DISABLE_TCP_EARLY_DEMUX", Meaning: "true writes tcp_early_demux=0, false writes 1; not set turns it off only where strict branch pods need it.", kind: boolean, assign: func(c *Config, v any) {
		c.TCPEarlyDemux = DemuxOn
		if v.(bool) {
			c.TCPEarlyDemux = DemuxOff
		}
	}},
	{Name: "BRANCHLINE_NODE_LOCAL_DESTINATIONS", Default: "169.254.20.10/32,169.254.170.23/32,fd00:ec2::23/128", Meaning: "What branch pods in strict mode reach on their node, past their security groups: by default NodeLocal DNS and EKS Pod Identity. Those of the pods' family are used.", kind: nodeLocal, assign: func(c *Config, v any) {
		c.NodeLocal, _ = parseNodeLocal(v.(string))
	}},
	acted("BRANCHLINE_KUBELET_LOCAL", "false", boolean, func(c *Config) *bool { return &c.KubeletLocal }, "The kubelet's own connections to branch pods in strict mode (probes) stay on the node, past the pods' security groups. Needs cgroup v2."),
	acted("WARM_ENI_TARGET", "1", integer(0, 15), func(c *Config) *int { return &c.WarmENITarget }, "How many ENIs' worth of free addresses is kept ahead."),
	acted("WARM_IP_TARGET", "", integer(0, 1000), func(c *Config) *int { return &c.WarmIPTarget }, "Free addresses kept ahead, one by one instead of by ENIs: it comes before WARM_ENI_TARGET. Pods that come and go cost more calls of EC2 than with ENIs or prefixes: see docs/benchmarks.md."),
	acted("MINIMUM_IP_TARGET", "", integer(0, 1000), func(c *Config) *int { return &c.MinimumIPTarget }, "Addresses kept in all, those in use among them; it comes before WARM_ENI_TARGET too."),
	acted("WARM_PREFIX_TARGET", "1", integer(0, 1000), func(c *Config) *int { return &c.WarmPrefixTarget }, "With prefix delegation: how many prefixes' worth of free addresses (16 each) is kept ahead, where neither WARM_IP_TARGET nor MINIMUM_IP_TARGET is set."),
	acted("MAX_ENI", "", integer(0, 64), func(c *Config) *int { return &c.MaxENI }, "At most this many ENIs, the trunk included; 0 or not set: the instance type's limit."),
	acted("ENABLE_PREFIX_DELEGATION", "false", boolean, func(c *Config) *bool { return &c.PrefixDelegation }, "ENIs get prefixes of 16 addresses (/28) instead of single addresses, on Nitro instances. May be switched while pods run: they keep their addresses."),
	acted("ENABLE_IPv4", "true", boolean, func(c *Config) *bool { return &c.IPv4 }, "Pods get IPv4 addresses. Exactly one of this and ENABLE_IPv6 is true."),
	acted("ENABLE_IPv6", "false", boolean, func(c *Config) *bool { return &c.IPv6 }, "Pods get IPv6 addresses, of one /80 prefix of the primary ENI (Nitro instances). Warm targets, prefix delegation and subnet discovery have no effect then; not together with custom networking."),
	acted("AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG", "false", boolean, func(c *Config) *bool { return &c.CustomNetworking }, "Custom networking: pods' ENIs are made in the subnet and with the security groups of the node's ENIConfig, and the primary ENI gives pods no addresses. It comes before ENABLE_SUBNET_DISCOVERY."),
	acted("ENI_CONFIG_LABEL_DEF", "k8s.amazonaws.com/eniConfig", objectKey, func(c *Config) *string { return &c.ENIConfigLabel }, "Node label whose value names the ENIConfig, after the label vpc.amazonaws.com/externalEniConfig and the annotation; without any of them it is the one called default."),
	acted("ENI_CONFIG_ANNOTATION_DEF", "k8s.amazonaws.com/eniConfig", objectKey, func(c *Config) *string { return &c.ENIConfigAnnotation }, "Node annotation whose value names the ENIConfig."),
	acted("ENABLE_SUBNET_DISCOVERY", "true", boolean, func(c *Config) *bool { return &c.SubnetDiscovery }, "ENIs are made in other subnets of the node's VPC and zone, too, by their tags; false: only in the primary ENI's subnet."),
	acted("AWS_MANAGE_ENIS_NON_SCHEDULABLE", "false", boolean, func(c *Config) *bool { return &c.ENIsOfCordoned }, "ENIs come and go on a cordoned node, too. Without it such a node keeps those that it has."),
	acted("MANAGE_UNTAGGED_ENI", "true", boolean, func(c *Config) *bool { return &c.ManageUntagged }, "ENIs that the agent did not make are used for pods (and never deleted); one with the tag node.k8s.amazonaws.com/no_manage=true never is, one with false always."),
	acted("DISABLE_NETWORK_RESOURCE_PROVISIONING", "false", boolean, func(c *Config) *bool { return &c.NoProvisioning }, "No ENI or address is asked for or given back: somebody else provides, and what is attached is used."),
	acted("DISABLE_LEAKED_ENI_CLEANUP", "false", boolean, func(c *Config) *bool { return &c.LeakSweepOff }, "Detached ENIs that this node left behind are not deleted (else: at start, after a step that failed, and once an hour)."),
	acted("AWS_VPC_K8S_CNI_BACKING_STORE", "/var/run/aws-node/ipam.json", absolutePath, func(c *Config) *string { return &c.BackingStore }, "The upstream agent's checkpoint: read once, at this agent's first start on the node."),
	acted("IP_COOLDOWN_PERIOD", "30", seconds(0, 3600), func(c *Config) *time.Duration { return &c.CoolDown }, "How long a freed address rests before it is given again."),
	acted(keepSurplus, "", seconds(0, 86400), func(c *Config) *time.Duration { return &c.KeepSurplus }, "How long the little above the warm targets is kept that was wanted lately, for pods that come and go. Not set: ten times IP_COOLDOWN_PERIOD, so 300; 0, or less than an address rests: what is above the targets goes once it was for as long as an address rests."),
	acted("ANNOTATE_POD_IP", "false", boolean, func(c *Config) *bool { return &c.AnnotatePodIP }, "Pods are annotated with their address (vpc.amazonaws.com/pod-ips) before the kubelet reports it, and with nothing once it is released. Needs config/aws-node-pod-ips."),
	acted("NETWORK_POLICY_ENFORCING_MODE", "", oneOf("none", "strict", "standard"), func(c *Config) *string { return &c.NetworkPolicyMode }, "The AWS network policy agent's mode. With strict or standard that agent must run on the node: each pod's start asks it, and fails without it. Not set is none."),
	acted("AWS_VPC_K8S_CNI_EXTERNALSNAT", "false", boolean, func(c *Config) *bool { return &c.ExternalSNAT }, "true: no source NAT on the node; what pods send out of the VPC leaves by their own ENI with their own address. false: it leaves by the primary ENI with the node's address, but for branch pods in strict mode."),
	acted("AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "", cidrs, func(c *Config) *CIDRs { return &c.ExcludeSNAT }, "Destinations outside the VPC without source NAT. Those of the pods' family are used."),
	acted("AWS_EXTERNAL_SERVICE_CIDRS", "", cidrs, func(c *Config) *CIDRs { return &c.ExternalServices }, "Destinations that all pods but branch pods in strict mode reach by the node's main routing table, whichever ENI they have. Those of the pods' family are used."),
	acted("AWS_VPC_K8S_CNI_RANDOMIZESNAT", "prng", oneOf("prng", "hashrandom", "none"), func(c *Config) *string { return &c.RandomizeSNAT }, "How source NAT chooses source ports: by the kernel's random numbers, by a keyed hash, or the pod's own where it is free."),
	acted("AWS_VPC_CNI_NODE_PORT_SUPPORT", "true", boolean, func(c *Config) *bool { return &c.NodePort }, "Pods on secondary ENIs, and branch pods in standard mode, answer by the primary ENI what came in there for the node: NodePort, LoadBalancer and hostPort."),
	acted("AWS_VPC_K8S_CNI_CONNMARK", "0x80", mark, func(c *Config) *uint32 { return &c.ConnMark }, "The mark of tracked connections that belong to the primary ENI; not 0, and clear of 0x400, which is the kubelet's here."),
	acted("AWS_VPC_ENI_MTU", "9001", integer(576, 9001), func(c *Config) *int { return &c.ENIMTU }, "MTU of the ENIs that the agent sets up (the primary one's is the host's), and of pods where POD_MTU is not set."),
	acted("POD_MTU", "", integer(576, 9001), func(c *Config) *int { return &c.PodMTU }, "MTU of the pods' interfaces; at most AWS_VPC_ENI_MTU."),
	acted("AWS_VPC_K8S_CNI_VETHPREFIX", "eni", vethPrefix, func(c *Config) *string { return &c.VethPrefix }, "Prefix of the host's side of a regular pod's veth pair."),
	acted("AWS_VPC_K8S_CNI_LOGLEVEL", "DEBUG", logLevel, func(c *Config) *slog.Level { return &c.LogLevel }, "The agent's log level."),
	acted("AWS_VPC_K8S_CNI_LOG_FILE", "/host/var/log/aws-routed-eni/ipamd.log", logTarget, func(c *Config) *string { return &c.LogFile }, "Where the agent logs."),
	acted("AWS_VPC_K8S_PLUGIN_LOG_LEVEL", "DEBUG", logLevelName, func(c *Config) *string { return &c.PluginLogLevel }, "The CNI executable's log level."),
	acted("AWS_VPC_K8S_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/plugin.log", pluginLog, func(c *Config) *string { return &c.PluginLogFile }, "Where the CNI executable logs, a path on the host."),
	acted("INTROSPECTION_BIND_ADDRESS", "127.0.0.1:61679", hostPortOrSocket, func(c *Config) *string { return &c.Introspection }, "Where introspection is served."),
	acted("DISABLE_INTROSPECTION", "false", boolean, func(c *Config) *bool { return &c.NoIntrospect }, "No introspection."),
	acted("DISABLE_METRICS", "false", boolean, func(c *Config) *bool { return &c.NoMetrics }, "No metrics."),
	{Name: "ADDITIONAL_ENI_TAGS", Default: "{}", Meaning: "Tags for the ENIs that the agent creates.", kind: tags, assign: func(c *Config, v any) {
		if m, err := parseTags(v.(string)); err == nil {
			c.ENITags = m
		}
	}},
	acted("CLUSTER_NAME", "", text, func(c *Config) *string { return &c.ClusterName }, "The cluster's name; tags the ENIs."),
	acted("CLUSTER_ENDPOINT", "", endpoint, func(c *Config) *string { return &c.APIServer }, "The API server's URL, instead of the in-cluster service address."),
	acted("MY_NODE_NAME", "", text, func(c *Config) *string { return &c.NodeName }, "This node's name (the downward API's spec.nodeName)."),
	acted("MY_POD_NAME", "", text, func(c *Config) *string { return &c.PodName }, "The agent's pod (the downward API's metadata.name); shown in the log's first line."),
	acted("AWS_EC2_ENDPOINT", "", endpoint, func(c *Config) *string { return &c.EC2Endpoint }, "URL of the EC2 API, instead of the region's own."),
	acted("HTTP_TIMEOUT", "10", seconds(1, 600), func(c *Config) *time.Duration { return &c.HTTPTimeout }, "How long one call of EC2 may take."),
	acted("ENABLE_BANDWIDTH_PLUGIN", "false", boolean, func(c *Config) *bool { return &c.Bandwidth }, "The bandwidth plugin is chained: pods' annotations kubernetes.io/ingress-bandwidth and egress-bandwidth are acted on."),
	acted("DISABLE_POD_V6", "false", boolean, func(c *Config) *bool { return &c.DisablePodIPv6 }, "IPv6 is turned off in new pods (net.ipv6.conf.all, default and lo). In IPv4 clusters, and not together with ENABLE_V6_EGRESS."),
	acted("ENABLE_V4_EGRESS", "true", boolean, func(c *Config) *bool { return &c.V4Egress }, "In IPv6 clusters: pods reach IPv4 destinations from the node's address. Without effect in IPv4 clusters."),
	acted("ENABLE_V6_EGRESS", "false", boolean, func(c *Config) *bool { return &c.V6Egress }, "In IPv4 clusters: pods reach IPv6 destinations from the node's address. Without effect in IPv6 clusters."),
	acted("ENABLE_MULTI_NIC", "false", boolean, func(c *Config) *bool { return &c.MultiNIC }, "Pods with the annotation k8s.amazonaws.com/nicConfig=multi-nic-attachment get an interface on each network card of the instance. May be switched while pods run: they keep their interfaces. In IPv4 clusters."),
	acted("ENABLE_IMDS_ONLY_MODE", "false", boolean, func(c *Config) *bool { return &c.IMDSOnly }, "EC2 is never asked: what IMDS shows is used, and nothing is asked for or given back. Not together with ENABLE_POD_ENI."),
	acted("VPC_CNI_VERSION", "", text, func(c *Config) *string { return &c.ManifestVersion }, "The manifest's version; shown in the log's first line."),
	acted("HOST_CNI_BIN_PATH", "/host/opt/cni/bin", absolutePath, func(c *Config) *string { return &c.HostBinDir }, "Where the init container puts the executables."),
	acted("HOST_CNI_CONFDIR_PATH", "/host/etc/cni/net.d", absolutePath, func(c *Config) *string { return &c.HostConfDir }, "Where the agent writes 10-aws.conflist."),
	acted("AWS_VPC_K8S_EGRESS_V4_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v4-plugin.log", pluginLog, func(c *Config) *string { return &c.V4EgressLog }, "Log of the IPv4 egress plugin, a path on the host."),
	acted("AWS_VPC_K8S_EGRESS_V6_PLUGIN_LOG_FILE", "/var/log/aws-routed-eni/egress-v6-plugin.log", pluginLog, func(c *Config) *string { return &c.V6EgressLog }, "Log of the IPv6 egress plugin, a path on the host."),
	deprecated("ENABLE_NFTABLES", "Chose the firewall tool."),
	deprecated("AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "Chose whether reverse-path filtering is set."),
}

// MarkdownTable renders Variables for the documentation.
func MarkdownTable() string {
	var b strings.Builder
	b.WriteString("| Variable | Default | Accepted | Meaning |\n|---|---|---|---|\n")
	for _, v := range Variables {
		accepted, def := v.Accepted(), v.Default
		if v.Deprecated {
			accepted = "anything; deprecated, no effect"
		}
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", v.Name, def, accepted, v.Meaning)
	}
	return b.String()
}
