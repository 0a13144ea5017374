package branch

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"k8s.io/apimachinery/pkg/types"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/policy"
)

// The value that real clusters show, with the fields that newer ones add.
func TestTheAnnotationIsSpeltAsNodeAgentsReadIt(t *testing.T) {
	got, err := annotation(&ledgerv1.Slot{
		ENIID: "eni-0d8a3a3a7f2eb57ab", MAC: "06:20:0d:3c:5f:bc", PrivateIP: "192.168.47.64", VLANID: 1, SubnetCIDR: "192.168.32.0/19", AssociationID: "trunk-assoc-1",
	})
	want := `[{"eniId":"eni-0d8a3a3a7f2eb57ab","ifAddress":"06:20:0d:3c:5f:bc","privateIp":"192.168.47.64","ipv6Addr":"","vlanId":1,"subnetCidr":"192.168.32.0/19","subnetV6Cidr":"","associationID":"trunk-assoc-1"}]`
	if err != nil || got != want {
		t.Fatalf("%v\n got %s\nwant %s", err, got, want)
	}
}

func TestTheAnnotationOfAPodInAnIPv6ClusterHasBothFamilies(t *testing.T) {
	slot := &ledgerv1.Slot{
		ENIID: "eni-1", MAC: "06:20:0d:3c:5f:bc", PrivateIP: "192.168.47.64", VLANID: 1, SubnetCIDR: "192.168.32.0/19", AssociationID: "trunk-assoc-1",
		IPv6Address: "2001:db8:0:1::7", SubnetIPv6CIDR: "2001:db8:0:1::/64",
	}
	got, err := annotation(slot)
	want := `[{"eniId":"eni-1","ifAddress":"06:20:0d:3c:5f:bc","privateIp":"192.168.47.64","ipv6Addr":"2001:db8:0:1::7","vlanId":1,"subnetCidr":"192.168.32.0/19","subnetV6Cidr":"2001:db8:0:1::/64","associationID":"trunk-assoc-1"}]`
	if err != nil || got != want || addresses(slot) != "192.168.47.64 and 2001:db8:0:1::7" {
		t.Fatalf("%v\n got %s\nwant %s", err, got, want)
	}
}

func FuzzAnnotation(f *testing.F) {
	f.Add("eni-1", "06:20:0d:3c:5f:bc", "192.168.47.64", "192.168.32.0/19", "trunk-assoc-1", "uid", int32(1))
	f.Add(`"`, "\\", "<&>", "]}", "\u2028", "\x00", int32(-1))
	f.Fuzz(func(t *testing.T, eni, mac, ip, cidr, association, uid string, vlan int32) {
		for _, s := range []string{eni, mac, ip, cidr, association, uid} {
			if !utf8.ValidString(s) {
				return // the API server stores no such string
			}
		}
		value, err := annotation(&ledgerv1.Slot{ENIID: eni, MAC: mac, PrivateIP: ip, VLANID: vlan, SubnetCIDR: cidr, AssociationID: association})
		if err != nil {
			t.Fatal(err)
		}
		var got []map[string]any
		if err := json.Unmarshal([]byte(value), &got); err != nil {
			t.Fatal(err)
		}
		want := []map[string]any{{"eniId": eni, "ifAddress": mac, "privateIp": ip, "ipv6Addr": "", "vlanId": float64(vlan), "subnetCidr": cidr, "subnetV6Cidr": "", "associationID": association}}
		if d := cmp.Diff(want, got); d != "" {
			t.Fatal(d)
		}
		patch, err := annotate(types.UID(uid), value)
		if err != nil {
			t.Fatal(err)
		}
		var p struct {
			Metadata struct {
				UID         string
				Annotations map[string]string
			}
		}
		if err := json.Unmarshal(patch, &p); err != nil || p.Metadata.UID != uid || p.Metadata.Annotations[policy.Resource] != value {
			t.Fatalf("%s: %v", patch, err)
		}
	})
}
