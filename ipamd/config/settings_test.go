package config

import (
	"encoding/json"
	"maps"
	"slices"
	"testing"
)

func TestSettingsShowEachVariableOnceAsItWasUnderstood(t *testing.T) {
	env := maps.Clone(stock)
	env["IP_COOLDOWN_PERIOD"], env["ADDITIONAL_ENI_TAGS"] = "45", `{"team": "blue"}`
	c, _, err := load(env)
	if err != nil {
		t.Fatal(err)
	}
	network, others := c.Settings()
	for name, want := range map[string]any{
		"AWS_VPC_K8S_CNI_CONNMARK": uint32(0x80), "AWS_VPC_ENI_MTU": 9001, "AWS_VPC_K8S_CNI_EXTERNALSNAT": false,
		"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": nil, "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "prng",
	} {
		if got, ok := network[name]; !ok || got != want {
			t.Errorf("%s of the host's network: %v (%T), want %v", name, got, got, want)
		}
	}
	for name, want := range map[string]any{
		"ENABLE_POD_ENI": false, "WARM_ENI_TARGET": 1, "IP_COOLDOWN_PERIOD": 45, "AWS_VPC_K8S_CNI_LOGLEVEL": "DEBUG", "MAX_ENI": nil,
		"ADDITIONAL_ENI_TAGS": `{"team":"blue"}`,
	} {
		if got, ok := others[name]; !ok || got != want {
			t.Errorf("%s: %v (%T), want %v", name, got, got, want)
		}
	}
	for _, v := range Variables {
		_, a := network[v.Name]
		_, b := others[v.Name]
		if a == b {
			t.Errorf("%s is shown in both or in none", v.Name)
		}
	}
	for _, name := range hostNetwork {
		if !slices.ContainsFunc(Variables, func(v Variable) bool { return v.Name == name }) {
			t.Errorf("there is no %s", name)
		}
	}
	for _, m := range []map[string]any{network, others} {
		if _, err := json.Marshal(m); err != nil {
			t.Error(err)
		}
	}
}

func TestIntrospectionIsBoundToAnAddressOrToASocket(t *testing.T) {
	for value, want := range map[string]string{
		"": "127.0.0.1:61679", "169.254.1.2:7": "169.254.1.2:7", "unix:/var/run//aws-node/i.sock": "unix:/var/run/aws-node/i.sock",
		"unix:i.sock": "", "localhost:1": "", "unix:": "",
	} {
		c, _, err := load(map[string]string{"INTROSPECTION_BIND_ADDRESS": value})
		if (err == nil) != (want != "") || err == nil && c.Introspection != want {
			t.Errorf("%q: %v, %v", value, c, err)
		}
	}
}
