package enis

import (
	"net/netip"
	"testing"
)

// TestMarksOfTheExecutableAreRead: the text is what plugins/datapath writes into the ifalias.
func TestMarksOfTheExecutableAreRead(t *testing.T) {
	m := Marked{VLANs: map[int]bool{}, Addresses: map[netip.Addr]bool{}}
	for name, alias := range map[string]string{
		"vlan.eth.7":      "branchline:0f3a/eth0 vlan=7 ip=192.168.47.64",
		"vlanb5faff8a083": "branchline:0f3a/eth0 vlan=8 ip=192.168.47.65",
		"enib5faff8a083":  "branchline:0f3b/eth0 ip=192.168.10.77 later=1",
		"vlan.eth.9":      "", // upstream's, or not marked yet
		"vlan.eth.x":      "vlan=10 ip=10.0.0.1",
		"eth0":            "branchline:/ vlan=x ip=y",
	} {
		m.read(name, alias)
	}
	if len(m.VLANs) != 3 || !m.VLANs[7] || !m.VLANs[8] || !m.VLANs[9] {
		t.Errorf("VLANs %v", m.VLANs)
	}
	for _, a := range []string{"192.168.47.64", "192.168.47.65", "192.168.10.77"} {
		if !m.Addresses[netip.MustParseAddr(a)] || len(m.Addresses) != 3 {
			t.Errorf("%s is not among %v", a, m.Addresses)
		}
	}
}
