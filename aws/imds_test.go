package aws

import (
	"encoding/json"
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
	f.Fuzz(func(t *testing.T, b []byte) {
		var fields map[string]string
		if json.Unmarshal(b, &fields) != nil {
			return
		}
		if i, err := parseInterface(fields); err == nil && (i.ENIID == "" || !i.SubnetCIDR.IsValid()) {
			t.Fatalf("%+v", i)
		}
	})
}
