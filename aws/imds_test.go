package aws

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

func FuzzIdentity(f *testing.F) {
	f.Add([]byte(`{"instanceId":"i-1","region":"us-west-2","privateIp":"192.168.0.4"}`))
	f.Add([]byte(`{"instanceId":"i-1","region":"us-west-2","privateIp":"x"}`))
	f.Add([]byte(`[]`))
	f.Fuzz(func(t *testing.T, b []byte) {
		if id, err := parseIdentity(b); err == nil && (id.InstanceID == "" || id.Region == "") {
			t.Fatalf("%+v", id)
		}
	})
}

func FuzzInterface(f *testing.F) {
	f.Add([]byte(`{"interface-id":"eni-1","device-number":"1","subnet-ipv4-cidr-block":"10.0.0.0/24","local-ipv4s":"10.0.0.4\n10.0.0.5"}`))
	f.Add([]byte(`{"interface-id":"eni-1","device-number":"","network-card":"x"}`))
	f.Add([]byte(`{"interface-id":"eni-1","device-number":"1","network-card":"2","subnet-id":"subnet-1"}`))
	f.Add([]byte(`{"interface-id":"eni-1","device-number":"0","ipv6s":"2001:db8::4","ipv6-prefix":"2001:db8:0:0:1::/80","subnet-ipv6-cidr-blocks":"2001:db8::/64"}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var fields map[string]string
		if json.Unmarshal(b, &fields) != nil {
			return
		}
		if i, err := parseInterface(fields); err == nil && (i.ENIID == "" || !i.SubnetCIDR.IsValid() && len(i.Addresses)+len(i.Prefixes) > 0) {
			t.Fatalf("%+v", i)
		}
	})
}

// An interface for EFA alone has neither an address nor a range of its subnet. One that has an address and no range is
// incomplete: nobody may decide by it.
func TestAnInterfaceThatCarriesNoIPIsListed(t *testing.T) {
	fields := map[string]string{"interface-id": "eni-1", "device-number": "1", "network-card": "2", "subnet-id": "subnet-1", "vpc-id": "vpc-1"}
	i, err := parseInterface(fields)
	if err != nil || i.NetworkCard != 2 || len(i.Addresses) > 0 || i.VPCID != "vpc-1" {
		t.Errorf("%+v, %v", i, err)
	}
	fields["local-ipv4s"] = "10.0.0.4"
	if i, err := parseInterface(fields); err == nil {
		t.Errorf("%+v", i)
	}
}

func TestAnInterfacesIPv6IsReadWhole(t *testing.T) {
	good := map[string]string{
		"interface-id": "eni-1", "device-number": "0", "subnet-ipv4-cidr-block": "10.0.0.0/24", "local-ipv4s": "10.0.0.4",
		"ipv6s": "2001:db8::4\n2001:db8::5", "ipv6-prefix": "2001:db8:0:0:1::/80", "subnet-ipv6-cidr-blocks": "2001:db8::/64", "vpc-ipv6-cidr-blocks": "2001:db8::/56",
	}
	i, err := parseInterface(good)
	if err != nil || len(i.IPv6Addresses) != 2 || i.IPv6Prefixes[0].String() != "2001:db8:0:0:1::/80" || i.SubnetIPv6CIDRs[0].Bits() != 64 || i.VPCIPv6CIDRs[0].Bits() != 56 {
		t.Errorf("%+v, %v", i, err)
	}
	for key, value := range map[string]string{
		"ipv6s": "10.0.0.1", "ipv6-prefix": "2001:db8::1/80", "subnet-ipv6-cidr-blocks": "10.0.0.0/8", "vpc-ipv6-cidr-blocks": "x",
	} {
		bad := maps.Clone(good)
		bad[key] = value
		if _, err := parseInterface(bad); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%s=%q: %v", key, value, err)
		}
	}
	for _, key := range []string{"subnet-ipv4-cidr-block", "local-ipv4s"} { // of an IPv6-only subnet
		delete(good, key)
	}
	if i, err := parseInterface(good); err != nil || len(i.IPv6Prefixes) != 1 || i.SubnetCIDR.IsValid() {
		t.Errorf("%+v, %v", i, err)
	}
}
