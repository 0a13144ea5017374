package config

import (
	"errors"
	"testing"
)

func TestPodsHaveExactlyOneFamily(t *testing.T) {
	for _, c := range []struct {
		env     map[string]string
		refused string // the variable that the error names
		ipv6    bool
		warns   bool
	}{
		{env: map[string]string{}},
		{env: map[string]string{"ENABLE_IPv4": "true", "ENABLE_IPv6": "false"}},
		{env: map[string]string{"ENABLE_IPv4": "false", "ENABLE_IPv6": "true", "ENABLE_PREFIX_DELEGATION": "true"}, ipv6: true},
		{env: map[string]string{"ENABLE_IPv4": "false", "ENABLE_IPv6": "true"}, ipv6: true, warns: true},
		{env: map[string]string{"ENABLE_IPv6": "true"}, refused: "ENABLE_IPv6"},
		{env: map[string]string{"ENABLE_IPv4": "false"}, refused: "ENABLE_IPv4"},
		{env: map[string]string{"ENABLE_IPv4": "false", "ENABLE_IPv6": "true", "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "true"}, refused: "AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"},
		{env: map[string]string{"ENABLE_IPv4": "false", "ENABLE_IPv6": "true", "ENABLE_MULTI_NIC": "true"}, refused: "ENABLE_MULTI_NIC"},
		{env: map[string]string{"ENABLE_MULTI_NIC": "true"}},
	} {
		got, warnings, err := load(c.env)
		var e *Error
		switch {
		case c.refused != "":
			if !errors.As(err, &e) || e.Variable != c.refused {
				t.Errorf("%v: %v", c.env, err)
			}
		case err != nil || got.IPv6 != c.ipv6 || got.IPv4 == c.ipv6 || (len(warnings) > 0) != c.warns:
			t.Errorf("%v: %+v, warnings %q, %v", c.env, got, warnings, err)
		}
	}
}
