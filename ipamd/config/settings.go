package config

import (
	"log/slog"
	"slices"
	"time"
)

// hostNetwork are the variables that upstream's introspection shows as those of the host's network.
var hostNetwork = []string{
	"AWS_VPC_K8S_CNI_EXTERNALSNAT", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS", "AWS_EXTERNAL_SERVICE_CIDRS", "AWS_VPC_K8S_CNI_RANDOMIZESNAT",
	"AWS_VPC_CNI_NODE_PORT_SUPPORT", "AWS_VPC_K8S_CNI_CONNMARK", "AWS_VPC_K8S_CNI_VETHPREFIX", "AWS_VPC_ENI_MTU", "POD_MTU",
	"AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER", "POD_SECURITY_GROUP_ENFORCING_MODE", "DISABLE_TCP_EARLY_DEMUX",
	"BRANCHLINE_NODE_LOCAL_DESTINATIONS", "BRANCHLINE_KUBELET_LOCAL",
}

// Settings are the variables as they were understood, for people: values of JSON's types, null where a variable has neither
// a value nor a default. Those of the host's network and the others are kept apart, as upstream's introspection does.
func (c *Config) Settings() (network, others map[string]any) {
	network, others = map[string]any{}, map[string]any{}
	for _, v := range Variables {
		into := others
		if slices.Contains(hostNetwork, v.Name) {
			into = network
		}
		into[v.Name] = shown(c.values[v.Name])
	}
	return network, others
}

func shown(v any) any {
	switch v := v.(type) {
	case time.Duration:
		return int(v / time.Second)
	case slog.Level:
		return v.String()
	case nil, bool, int, uint32, uint64, string:
		return v
	case CIDRs:
		return string(v)
	}
	return nil
}
