package upgrade

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/plugins/eni"
)

var recorded = time.Date(2026, 11, 23, 7, 0, 0, 0, time.UTC)

// opened is a moment at which the recorded address still rests.
var opened = time.Date(2027, 1, 3, 22, 59, 50, 0, time.UTC)

// previousStore opens a copy of the previous release's file of allocations.
func previousStore(t *testing.T) (s *store.Store, path string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "state.json")
	if err := os.WriteFile(path, read(t, "store/state.json"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, kept, err := store.Open(path, store.Options{CoolDown: 30 * time.Second, Now: func() time.Time { return opened }})
	if err != nil || kept != "" {
		t.Fatalf("the previous release's file: kept aside as %q, %v", kept, err)
	}
	return s, path
}

// TestAllocationsOfThePreviousReleaseAreKeptWhole: each pod keeps what it has, and nothing that rests or leaves is given.
func TestAllocationsOfThePreviousReleaseAreKeptWhole(t *testing.T) {
	s, _ := previousStore(t)
	v := s.View()
	address := func(id string) string {
		a, ok := s.Get(store.Key{ContainerID: id, IfName: "eth0"})
		switch {
		case !ok || a.Pod.UID != "uid-of-"+id || a.Network != "aws-cni" || !a.Since.Equal(recorded):
			t.Errorf("%s: %+v", id, a)
		case a.Regular != nil && a.Regular.ENIID == "eni-1" && a.Regular.Device == 1 && a.Regular.RouteTable == 2:
			return a.Regular.Address.String()
		case a.Branch != nil:
			return fmt.Sprintf("%s %s %s vlan %d %s standard %t", a.Branch.Address, a.Branch.ENIID, a.Branch.MAC, a.Branch.VLAN, a.Branch.SubnetCIDR, a.Branch.Standard)
		}
		return fmt.Sprintf("%+v", a)
	}
	for id, want := range map[string]string{
		"regular": "192.168.32.10", "taken": "192.168.32.9",
		"strict":   "192.168.47.64 eni-b1 06:20:0d:3c:5f:01 vlan 7 192.168.32.0/19 standard false",
		"standard": "2001:db8::8 eni-b2 06:20:0d:3c:5f:02 vlan 8 invalid Prefix standard true",
	} {
		if got := address(id); got != want {
			t.Errorf("%s has %s, want %s", id, got, want)
		}
	}
	if len(v.Allocations) != 4 || len(v.Cooling) != 1 || v.Cooling[0].Address.String() != "192.168.32.11" || v.Cooling[0].ENIID != "eni-1" ||
		len(v.Released) != 1 || v.Released[0] != (store.Released{PodUID: "uid-of-released", VLAN: 9, ENIID: "eni-b3", At: recorded}) ||
		!slices.Equal(v.Retiring, []string{"eni-2"}) ||
		!slices.Equal(v.Leaving, []store.Leaving{{Prefix: netip.MustParsePrefix("192.168.32.12/32"), ENIID: "eni-1"}, {Prefix: netip.MustParsePrefix("192.168.33.0/28"), ENIID: "eni-3"}}) ||
		v.TakenOver == nil || v.TakenOver.Pods != 1 || s.MayTakeOver() {
		t.Errorf("%+v", v)
	}
}

// TestThePreviousReleaseReadsWhatThisOneWrites: an update may be taken back. What the older release has written is there again
// with the same names and values, and the file says that it may read it.
func TestThePreviousReleaseReadsWhatThisOneWrites(t *testing.T) {
	s, path := previousStore(t)
	if err := s.Retire("eni-of-this-release"); err != nil { // have it written
		t.Fatal(err)
	}
	type file struct {
		Version, Oldest int
		State           map[string]any
	}
	parse := func(b []byte) (f file) {
		if err := json.Unmarshal(b, &f); err != nil {
			t.Fatal(err)
		}
		return f
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	was, is := parse(read(t, "store/state.json")), parse(b)
	if is.Version != was.Version && (is.Oldest == 0 || is.Oldest > was.Version) {
		t.Errorf("the file has version %d, which a release of version %d would keep aside", is.Version, was.Version)
	}
	contains(t, "state", was.State, is.State)
}

// contains: is has everything of was; lists may have more members.
func contains(t *testing.T, at string, was, is any) {
	t.Helper()
	switch w := was.(type) {
	case map[string]any:
		m, _ := is.(map[string]any)
		for k, v := range w {
			if _, ok := m[k]; !ok {
				t.Errorf("%s.%s is gone", at, k)
				continue
			}
			contains(t, at+"."+k, v, m[k])
		}
	case []any:
		l, _ := is.([]any)
		for i, v := range w {
			// Sorted lists: the same member is where it was, or further back.
			if !slices.ContainsFunc(l, func(o any) bool { return covers(v, o) }) {
				t.Errorf("%s[%d], %v, is gone", at, i, v)
			}
		}
	default:
		if !reflect.DeepEqual(was, is) {
			t.Errorf("%s is %v, was %v", at, is, was)
		}
	}
}

func covers(was, is any) bool {
	w, ok := was.(map[string]any)
	if !ok {
		return reflect.DeepEqual(was, is)
	}
	m, _ := is.(map[string]any)
	for k, v := range w {
		if !covers(v, m[k]) {
			return false
		}
	}
	return true
}

// TestTheConflistsOfAdjacentReleasesAreReadByEachOthersExecutable: the init container installs the executable, the agent writes
// the configuration later, and after a failed update each may stay for long.
func TestTheConflistsOfAdjacentReleasesAreReadByEachOthersExecutable(t *testing.T) {
	for name, env := range map[string]map[string]string{
		"default.json": nil,
		"all.json": {
			"ENABLE_V6_EGRESS": "true", "ENABLE_BANDWIDTH_PLUGIN": "true", "NETWORK_POLICY_ENFORCING_MODE": "strict", "POD_SECURITY_GROUP_ENFORCING_MODE": "standard",
			"POD_MTU": "1400", "AWS_VPC_K8S_PLUGIN_LOG_LEVEL": "ERROR",
		},
	} {
		c, _, err := config.Load(func(k string) (string, bool) { v, ok := env[k]; return v, ok })
		if err != nil {
			t.Fatal(err)
		}
		ours, err := install.Conflist(c)
		if err != nil {
			t.Fatal(err)
		}
		older, newer := parseList(t, read(t, filepath.Join("conflist", name))), parseList(t, ours)
		if older.Name != newer.Name || older.CNIVersion != newer.CNIVersion || !contained(older.CNIVersions, newer.CNIVersions) {
			t.Errorf("%s: %+v, was %+v: sandboxes that run are known to the runtime by the network's name", name, newer, older)
		}
		for i, p := range older.Plugins {
			if i >= len(newer.Plugins) || newer.Plugins[i]["type"] != p["type"] {
				t.Errorf("%s: plugin %d of the chain was %v", name, i, p["type"])
				continue
			}
			contains(t, fmt.Sprintf("%s: %s", name, p["type"]), p, newer.Plugins[i])
		}
		if got, want := parseConfig(t, older), parseConfig(t, newer); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: the executable takes the previous release's for %+v, and this one's for %+v", name, got, want)
		}
	}
}

type list struct {
	Name, CNIVersion string
	CNIVersions      []string
	Plugins          []map[string]any
}

func parseList(t *testing.T, b []byte) (l list) {
	t.Helper()
	if err := json.Unmarshal(b, &l); err != nil {
		t.Fatal(err)
	}
	return l
}

func contained(was, is []string) bool {
	return !slices.ContainsFunc(was, func(v string) bool { return !slices.Contains(is, v) })
}

// parseConfig is what the executable makes of its entry, as the runtime passes it.
func parseConfig(t *testing.T, l list) eni.Config {
	t.Helper()
	entry := l.Plugins[0]
	entry["cniVersion"], entry["name"] = l.CNIVersion, l.Name
	b, err := json.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	c, err := eni.ParseConfig(b)
	if err != nil {
		t.Errorf("%s: %v", b, err)
	}
	return c
}
