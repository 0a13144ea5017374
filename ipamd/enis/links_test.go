package enis

import (
	"maps"
	"net/netip"
	"testing"
)

// TestMarksOfTheExecutableAreRead: the text is what plugins/datapath writes into the ifalias.
func TestMarksOfTheExecutableAreRead(t *testing.T) {
	m := Marked{VLANs: map[int]bool{}, Addresses: map[netip.Addr]bool{}, Regular: map[netip.Addr]Sandbox{}}
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

func TestAnAddressIsOfTheOneSandboxWhoseLinkSaysSo(t *testing.T) {
	m := Marked{VLANs: map[int]bool{}, Standard: map[int]bool{}, Addresses: map[netip.Addr]bool{}, Regular: map[netip.Addr]Sandbox{}}
	for name, alias := range map[string]string{
		"eni1": "branchline:a/eth0 ip=10.0.0.1",
		"eni2": "branchline:b/eth0 ip=10.0.0.2", "eni3": "branchline:c/eth0 ip=10.0.0.2", "eni4": "branchline:d/eth0 ip=10.0.0.2",
		"eni5": "branchline:e/eth0 ip=2001:db8::5", "eni6": "branchline:e/eth0 ip=2001:db8::5",
		"vlan1": "branchline:f/eth0 vlan=7 mode=standard ip=10.0.0.6", "eni7": "branchline:g/eth0 ip=10.0.0.7 further=2", "eni8": "branchline:g/mNicIf1 ip=10.0.0.8 number=1",
		"eni9": "branchline:h ip=10.0.0.9", "eth0": "branchline:/eth0 ip=10.0.0.10",
	} {
		m.read(name, alias)
	}
	want := map[netip.Addr]Sandbox{
		netip.MustParseAddr("10.0.0.1"): {"a", "eth0"}, netip.MustParseAddr("10.0.0.2"): {}, netip.MustParseAddr("2001:db8::5"): {"e", "eth0"},
	}
	if !maps.Equal(m.Regular, want) {
		t.Errorf("%v, want %v", m.Regular, want)
	}
}
