package annotation

import (
	"errors"
	"strings"
	"testing"
)

const good = `[{"eniId":"eni-0d8a3a3a7f2eb57ab","ifAddress":"06:20:0d:3c:5f:bc","privateIp":"192.168.47.64","vlanId":1,"subnetCidr":"192.168.32.0/19"}]`

func TestRealValueIsRead(t *testing.T) {
	b, err := Parse(good)
	if err != nil {
		t.Fatal(err)
	}
	if b.VLAN != 1 || b.Gateway().String() != "192.168.32.1" || b.MAC.String() != "06:20:0d:3c:5f:bc" || b.Address.String() != "192.168.47.64" {
		t.Errorf("%+v", b)
	}
	if _, err := Parse(strings.Replace(good, `"vlanId"`, `"later":{"x":[1]},"associationID":"trunk-assoc-1","vlanId"`, 1)); err != nil {
		t.Errorf("unknown fields: %v", err)
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
		_, err := Parse(strings.Replace(good, c.old, c.new, 1))
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
	f.Fuzz(func(t *testing.T, s string) {
		b, err := Parse(s)
		if err == nil && (b.VLAN < 1 || b.VLAN > 4094 || len(b.MAC) != 6 || !b.SubnetCIDR.Contains(b.Address) || !b.SubnetCIDR.Contains(b.Gateway()) || b.ENIID == "") {
			t.Fatalf("%q was accepted as %+v", s, b)
		}
		var fe *FieldError
		if err != nil && !errors.As(err, &fe) {
			t.Fatalf("%T", err)
		}
	})
}
