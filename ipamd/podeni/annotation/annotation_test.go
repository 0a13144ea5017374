package annotation

import (
	"errors"
	"strings"
	"testing"
)

const good = `[{"eniId":"eni-0d8a3a3a7f2eb57ab","ifAddress":"06:20:0d:3c:5f:bc","privateIp":"192.168.47.64","vlanId":1,"subnetCidr":"192.168.32.0/19"}]`

func TestRealValueIsRead(t *testing.T) {
	b, err := Parse(good, false)
	if err != nil {
		t.Fatal(err)
	}
	if b.VLAN != 1 || Gateway(b.Address, b.SubnetCIDR).String() != "192.168.32.1" || b.MAC.String() != "06:20:0d:3c:5f:bc" || b.Address.String() != "192.168.47.64" {
		t.Errorf("%+v", b)
	}
	if _, err := Parse(strings.Replace(good, `"vlanId"`, `"later":{"x":[1]},"associationID":"trunk-assoc-1","vlanId"`, 1), false); err != nil {
		t.Errorf("unknown fields: %v", err)
	}
}

const goodIPv6 = `[{"eniId":"eni-0d8a3a3a7f2eb57ab","ifAddress":"06:20:0d:3c:5f:bc","privateIp":"","ipv6Addr":"2001:db8:1::64","vlanId":1,"subnetCidr":"","subnetV6Cidr":"2001:db8:1::/64"}]`

func TestAnIPv6ClusterReadsTheIPv6Fields(t *testing.T) {
	b, err := Parse(goodIPv6, true)
	if err != nil || b.Address.String() != "2001:db8:1::64" || b.SubnetCIDR.String() != "2001:db8:1::/64" || b.Doubt != "" || Gateway(b.Address, b.SubnetCIDR).String() != "fe80:ec2::1" {
		t.Errorf("%+v, %v", b, err)
	}
	if b, err := Parse(strings.Replace(goodIPv6, "2001:db8:1::/64", "2001:db8:2::/64", 1), true); err != nil || !strings.Contains(b.Doubt, "2001:db8:2::/64") {
		t.Errorf("outside its subnet: %+v, %v", b, err)
	}
	if b, err := Parse(strings.Replace(goodIPv6, "2001:db8:1::/64", "", 1), true); err != nil || b.SubnetCIDR.IsValid() {
		t.Errorf("no subnet: %+v, %v", b, err)
	}
	for value, field := range map[string]string{
		good: "ipv6Addr",
		strings.Replace(goodIPv6, "2001:db8:1::64", "192.168.1.1", 1):        "ipv6Addr",
		strings.Replace(goodIPv6, "2001:db8:1::64", "::ffff:192.168.1.1", 1): "ipv6Addr",
		strings.Replace(goodIPv6, "2001:db8:1::64", "fe80::1", 1):            "ipv6Addr",
		strings.Replace(goodIPv6, "2001:db8:1::/64", "10.0.0.0/8", 1):        "subnetV6Cidr",
	} {
		_, err := Parse(value, true)
		var fe *FieldError
		if !errors.As(err, &fe) || fe.Field != field {
			t.Errorf("%s: %v, want field %s", value, err, field)
		}
	}
}

func TestEachMalformedValueNamesItsField(t *testing.T) {
	for _, c := range []struct{ old, new, field string }{
		{good, "not JSON", ""}, {good, "[]", ""}, {good, "{}", ""}, {good, "null", ""},
		{`"vlanId":1`, `"vlanId":0`, "vlanId"}, {`"vlanId":1`, `"vlanId":4095`, "vlanId"}, {`"vlanId":1`, `"vlanId":"1"`, "vlanId"}, {`"vlanId":1`, `"vlanId":-1`, "vlanId"},
		{"06:20:0d:3c:5f:bc", "06:20:0d:3c:5f", "ifAddress"}, {"06:20:0d:3c:5f:bc", "ff:ff:ff:ff:ff:ff", "ifAddress"}, {"06:20:0d:3c:5f:bc", "", "ifAddress"},
		{"192.168.47.64", "", "privateIp"}, {"192.168.47.64", "fd00::1", "privateIp"}, {"192.168.47.64", "10.0.0.1", "privateIp"}, {"192.168.47.64", "192.168.32.1", "privateIp"},
		{"192.168.32.0/19", "192.168.32.0", "subnetCidr"}, {"192.168.32.0/19", "", "subnetCidr"}, {"192.168.32.0/19", "fd00::/64", "subnetCidr"},
		{"eni-0d8a3a3a7f2eb57ab", "", "eniId"},
	} {
		_, err := Parse(strings.Replace(good, c.old, c.new, 1), false)
		var fe *FieldError
		if !errors.As(err, &fe) || !strings.HasSuffix(fe.Field, c.field) || (c.field == "") != (fe.Field == "") {
			t.Errorf("%s -> %s: %v", c.old, c.new, err)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(good)
	f.Add("[]")
	f.Add(`[{"vlanId":9999999999999999999}]`)
	f.Add(goodIPv6)
	f.Fuzz(func(t *testing.T, s string) {
		b, err := Parse(s, false)
		if err == nil && (b.VLAN < 1 || b.VLAN > 4094 || len(b.MAC) != 6 || !b.SubnetCIDR.Contains(b.Address) || !b.SubnetCIDR.Contains(Gateway(b.Address, b.SubnetCIDR)) || b.ENIID == "") {
			t.Fatalf("%q was accepted as %+v", s, b)
		}
		b6, err6 := Parse(s, true)
		if err6 == nil && (b6.VLAN < 1 || b6.VLAN > 4094 || len(b6.MAC) != 6 || !b6.Address.Is6() || b6.Address.Is4In6() || b6.ENIID == "") {
			t.Fatalf("%q was accepted as %+v", s, b6)
		}
		var fe *FieldError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("%T", err)
		}
	})
}
