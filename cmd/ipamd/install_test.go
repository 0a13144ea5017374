package main

import (
	"log/slog"
	"testing"
)

// TestTheInitContainerNeedsNoMoreOfTheFamilyThanManifestsGiveIt: those of EKS have ENABLE_IPv6 there, and ENABLE_IPv4 in the other
// container only.
func TestTheInitContainerNeedsNoMoreOfTheFamilyThanManifestsGiveIt(t *testing.T) {
	for _, c := range []struct {
		name string
		env  map[string]string
		ipv6 bool
		ok   bool
	}{
		{"IPv4, of EKS", map[string]string{"ENABLE_IPv6": "false"}, false, true},
		{"IPv6, of EKS", map[string]string{"ENABLE_IPv6": "true"}, true, true},
		{"IPv6, in other letters", map[string]string{"ENABLE_IPv6": "T", "ENABLE_IPv4": ""}, true, true},
		{"IPv6, by set env", map[string]string{"ENABLE_IPv6": "true", "ENABLE_IPv4": "false"}, true, true},
		{"both", map[string]string{"ENABLE_IPv6": "true", "ENABLE_IPv4": "true"}, false, false},
		{"neither", map[string]string{"ENABLE_IPv6": "false", "ENABLE_IPv4": "false"}, false, false},
		{"nonsense", map[string]string{"ENABLE_IPv6": "perhaps"}, false, false},
	} {
		conf, err := load(slog.New(slog.DiscardHandler), ofInit(func(k string) (string, bool) { v, ok := c.env[k]; return v, ok }))
		switch {
		case (err == nil) != c.ok:
			t.Errorf("%s: %v", c.name, err)
		case err == nil && (conf.IPv6 != c.ipv6 || conf.IPv4 == c.ipv6):
			t.Errorf("%s: IPv4 %t, IPv6 %t", c.name, conf.IPv4, conf.IPv6)
		}
	}
}
