package config

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/hostnet"
)

func load(env map[string]string) (*Config, []string, error) {
	return Load(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
}

// stock is what the upstream DaemonSet's manifest sets.
var stock = map[string]string{
	"ADDITIONAL_ENI_TAGS": "{}", "AWS_VPC_CNI_NODE_PORT_SUPPORT": "true", "AWS_VPC_ENI_MTU": "9001",
	"AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG": "false", "AWS_VPC_K8S_CNI_EXTERNALSNAT": "false", "AWS_VPC_K8S_CNI_LOGLEVEL": "DEBUG",
	"AWS_VPC_K8S_CNI_LOG_FILE": "/host/var/log/aws-routed-eni/ipamd.log", "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "prng",
	"AWS_VPC_K8S_CNI_VETHPREFIX": "eni", "AWS_VPC_K8S_PLUGIN_LOG_FILE": "/var/log/aws-routed-eni/plugin.log",
	"AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "DEBUG", "CLUSTER_ENDPOINT": "", "CLUSTER_NAME": "", "DISABLE_INTROSPECTION": "false",
	"DISABLE_METRICS": "false", "DISABLE_NETWORK_RESOURCE_PROVISIONING": "false", "DISABLE_TCP_EARLY_DEMUX": "false",
	"ENABLE_IMDS_ONLY_MODE": "false", "ENABLE_IPv4": "true", "ENABLE_IPv6": "false", "ENABLE_MULTI_NIC": "false",
	"ENABLE_POD_ENI": "false", "ENABLE_PREFIX_DELEGATION": "false", "ENABLE_SUBNET_DISCOVERY": "true",
	"NETWORK_POLICY_ENFORCING_MODE": "standard", "VPC_CNI_VERSION": "v1.21.1", "VPC_ID": "vpc-1", "WARM_ENI_TARGET": "1", "WARM_PREFIX_TARGET": "1",
	"MY_NODE_NAME": "ip-192-168-1-2.us-west-2.compute.internal", "MY_POD_NAME": "aws-node-abcde",
}

func TestStockManifestStarts(t *testing.T) {
	c, warnings, err := load(stock)
	if err != nil || len(warnings) > 0 {
		t.Fatalf("warnings %q, error %v", warnings, err)
	}
	if c.WarmENITarget != 1 || c.CoolDown != 30*time.Second || c.MTUOfPods() != 9001 || c.VethPrefix != "eni" || c.TCPEarlyDemux != DemuxOn || c.HostBinDir != "/host/opt/cni/bin" {
		t.Errorf("%+v", c)
	}
	env := maps.Clone(stock)
	env["AWS_VPC_K8S_CNI_CONFIGURE_RPFILTER"], env["ENABLE_NFTABLES"] = "false", "yes please" // whatever it is
	if _, warnings, err = load(env); err != nil || len(warnings) != 2 {
		t.Errorf("deprecated: warnings %q, error %v", warnings, err)
	}
}

func TestEveryErrorNamesVariableValueAndWhatIsAccepted(t *testing.T) {
	bad := map[string]string{
		"ENABLE_POD_ENI": "maybe", "WARM_ENI_TARGET": "-1", "AWS_VPC_ENI_MTU": "9002", "AWS_VPC_K8S_CNI_VETHPREFIX": "vlan",
		"POD_SECURITY_GROUP_ENFORCING_MODE": "lax", "ADDITIONAL_ENI_TAGS": `{"aws:x":"y"}`, "IP_COOLDOWN_PERIOD": "30s",
		"ENABLE_IPv6": "both", "ENABLE_IPv4": "v4", "ENABLE_PREFIX_DELEGATION": "28", "WARM_IP_TARGET": "-5", "AWS_EC2_ENDPOINT": "ftp://x",
		"AWS_VPC_K8S_CNI_LOG_FILE": "here.log", "NETWORK_POLICY_ENFORCING_MODE": "lenient", "AWS_VPC_K8S_CNI_EXTERNALSNAT": "perhaps", "AWS_VPC_K8S_CNI_RANDOMIZESNAT": "dice", "AWS_EXTERNAL_SERVICE_CIDRS": "10.0.0.1",
		"ENI_CONFIG_LABEL_DEF": "a label", "ENABLE_SUBNET_DISCOVERY": "0-1", "AWS_VPC_K8S_CNI_CONNMARK": "0x480", "INTROSPECTION_BIND_ADDRESS": "localhost", "AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.0.0.0/8,::ffff:10.0.0.0/104",
	}
	for _, v := range Variables { // what none accepts that does not accept anything
		if _, has := bad[v.Name]; !has && v.Accepted() != text.accepted {
			bad[v.Name] = "?!"
		}
	}
	_, _, err := load(bad)
	if err == nil {
		t.Fatal("accepted")
	}
	for name, v := range bad {
		at := strings.Index(err.Error(), name+"=")
		if at < 0 {
			t.Errorf("%s is not named", name)
			continue
		}
		line, _, _ := strings.Cut(err.Error()[at:], "\n")
		if !strings.Contains(line, "accepted: ") || (!strings.Contains(line, v) && !strings.Contains(line, "aws:x")) {
			t.Errorf("%s: %s", name, line)
		}
	}
}

func TestDefaultsAreTheirOwnAcceptedValues(t *testing.T) {
	seen := map[string]bool{}
	for _, v := range Variables {
		if seen[v.Name] {
			t.Errorf("%s is there twice", v.Name)
		}
		seen[v.Name] = true
		if v.Default != "" {
			if _, _, err := load(map[string]string{v.Name: v.Default}); err != nil {
				t.Errorf("%s=%s: %v", v.Name, v.Default, err)
			}
		}
		if v.Meaning == "" || v.Accepted() == "" {
			t.Errorf("%s is not documented", v.Name)
		}
	}
}

func TestSourceNATIsAsUpstreamsUnlessToldOtherwise(t *testing.T) {
	c, _, err := load(stock)
	if err != nil || c.ExternalSNAT || !c.NodePort || c.ConnMark != 0x80 || c.RandomizeSNAT != "prng" || c.ExcludeSNAT.Prefixes() != nil || c.EgressSubnet().IsValid() {
		t.Errorf("%+v, %v", c, err)
	}
	c, _, err = load(map[string]string{
		"AWS_VPC_K8S_CNI_EXTERNALSNAT": "true", "AWS_VPC_CNI_NODE_PORT_SUPPORT": "false", "AWS_VPC_K8S_CNI_CONNMARK": "256",
		"AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS": "10.8.0.1/16, 10.7.0.0/16,10.8.0.0/16", "AWS_EXTERNAL_SERVICE_CIDRS": "198.51.100.0/24", "ENABLE_V6_EGRESS": "true",
	})
	if err != nil || !c.ExternalSNAT || c.NodePort || c.ConnMark != 0x100 || c.EgressSubnet().String() != "fd00::ac:0/118" {
		t.Fatalf("%+v, %v", c, err)
	}
	want := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16"), netip.MustParsePrefix("10.8.0.0/16")}
	if got := c.ExcludeSNAT.Prefixes(); !slices.Equal(got, want) || len(c.ExternalServices.Prefixes()) != 1 {
		t.Errorf("excluded %v, external %v", got, c.ExternalServices.Prefixes())
	}
}

func TestTheKubeletsMarkIsTheOneThatTheConnectionMarkKeepsClearOf(t *testing.T) {
	if kubeletMark != hostnet.KubeletMark {
		t.Errorf("%#x and %#x", kubeletMark, hostnet.KubeletMark)
	}
}

func TestEarlyDemuxIsAutomaticUnlessSet(t *testing.T) {
	for value, want := range map[string]Demux{"": DemuxAutomatic, "true": DemuxOff, "false": DemuxOn} {
		c, warnings, err := load(map[string]string{"DISABLE_TCP_EARLY_DEMUX": value, "ENABLE_POD_ENI": "true"})
		if err != nil || c.TCPEarlyDemux != want || (want == DemuxOn) != (len(warnings) == 1) {
			t.Errorf("%q: %v, warnings %q, error %v", value, c, warnings, err)
		}
	}
}

func FuzzLoad(f *testing.F) {
	for i := range Variables {
		f.Add(i, "true")
		f.Add(i, `{"a":"b"}`)
	}
	f.Fuzz(func(t *testing.T, i int, value string) {
		v := Variables[uint(i)%uint(len(Variables))]
		c, _, err := load(map[string]string{v.Name: value})
		if (c == nil) == (err == nil) {
			t.Fatalf("config %v and error %v", c, err)
		}
		if err != nil && !strings.Contains(err.Error(), v.Name) {
			t.Fatalf("%v does not name %s", err, v.Name)
		}
	})
}

func TestNodeLocalDestinationsAreAListOfSingleServices(t *testing.T) {
	load := func(value string) ([]string, error) {
		c, _, err := Load(func(name string) (string, bool) {
			return value, name == "BRANCHLINE_NODE_LOCAL_DESTINATIONS" && value != ""
		})
		if err != nil {
			return nil, err
		}
		out := []string{}
		for _, p := range c.NodeLocal {
			out = append(out, p.String())
		}
		return out, nil
	}
	for value, want := range map[string][]string{
		"":     {"169.254.20.10/32", "169.254.170.23/32", "fd00:ec2::23/128"},
		"none": {}, "NONE": {},
		"172.20.0.10, 169.254.20.10/32,169.254.20.10": {"169.254.20.10/32", "172.20.0.10/32"},
		"169.254.20.77/24":                            {"169.254.20.0/24"},
	} {
		if got, err := load(value); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v, want %q", value, got, err, want)
		}
	}
	for _, value := range []string{"0.0.0.0/0", "10.0.0.0/8", "::/0", "fe80::1%eth0", "dns", "169.254.20.10,", "::ffff:10.0.0.1"} {
		var e *Error
		if got, err := load(value); !errors.As(err, &e) || e.Variable != "BRANCHLINE_NODE_LOCAL_DESTINATIONS" {
			t.Errorf("%q: %q, %v", value, got, err)
		}
	}
}

func FuzzNodeLocalDestinations(f *testing.F) {
	f.Add("169.254.20.10/32,fd00:ec2::23/128")
	f.Add("none")
	f.Fuzz(func(t *testing.T, s string) {
		text, err := nodeLocal.parse(s)
		if err != nil {
			return
		}
		list, err := parseNodeLocal(s)
		again, aerr := parseNodeLocal(text.(string))
		if err != nil || aerr != nil || !slices.Equal(list, again) {
			t.Errorf("%q: %v, %v; as %q: %v, %v", s, list, err, text, again, aerr)
		}
	})
}

func TestWithoutEC2ThereIsNoTrunk(t *testing.T) {
	_, _, err := load(map[string]string{"ENABLE_IMDS_ONLY_MODE": "true", "ENABLE_POD_ENI": "true"})
	var e *Error
	if !errors.As(err, &e) || e.Variable != "ENABLE_IMDS_ONLY_MODE" || !strings.Contains(e.Error(), "ENABLE_POD_ENI") {
		t.Errorf("%v", err)
	}
}

func TestPodsWithIPv6KeepIt(t *testing.T) {
	for env, want := range map[string]bool{"ENABLE_V6_EGRESS": false, "ENABLE_BANDWIDTH_PLUGIN": true} {
		c, _, err := load(map[string]string{"DISABLE_POD_V6": "true", env: "true"})
		var e *Error
		if want && (err != nil || !c.DisablePodIPv6) || !want && (!errors.As(err, &e) || e.Variable != "DISABLE_POD_V6" || !strings.Contains(e.Error(), env)) {
			t.Errorf("DISABLE_POD_V6 with %s: %v", env, err)
		}
	}
}

func TestWhatWasWantedLatelyIsKeptTenTimesAsLongAsAnAddressRestsUnlessSaid(t *testing.T) {
	for _, c := range []struct {
		coolDown, keep string
		want           time.Duration
	}{
		{"", "", 5 * time.Minute}, {"60", "", 10 * time.Minute}, {"0", "", 0}, {"", "0", 0}, {"60", "45", 45 * time.Second}, {"0", "300", 5 * time.Minute},
	} {
		got, _, err := load(map[string]string{"IP_COOLDOWN_PERIOD": c.coolDown, "BRANCHLINE_KEEP_SURPLUS": c.keep})
		if err != nil || got.KeepSurplus != c.want {
			t.Errorf("%+v: %v, %v", c, got, err)
		}
	}
	if _, _, err := load(map[string]string{"BRANCHLINE_KEEP_SURPLUS": "5m"}); err == nil || !strings.Contains(err.Error(), "BRANCHLINE_KEEP_SURPLUS=") {
		t.Errorf("%v", err)
	}
}
