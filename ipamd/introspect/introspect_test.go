package introspect

import (
	"encoding/json"
	"errors"
	"net"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/store"
)

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

var (
	now  = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	all  = []enis.ENI{{ID: "eni-1", Addresses: []netip.Addr{addr("10.0.0.4"), addr("10.0.0.5"), addr("10.0.0.6"), addr("10.0.0.7"), addr("10.0.0.8")}}, {ID: "eni-2", Device: 1, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.16/28")}}, {ID: "eni-3", Device: 3, Trunk: true, Addresses: []netip.Addr{addr("10.0.0.9")}}}
	view = store.View{
		Allocations: []store.Allocation{
			{Key: store.Key{ContainerID: "c1", IfName: "eth0"}, Network: "aws-cni", Pod: store.Pod{Namespace: "shop", Name: "b", UID: "u1"}, Since: now, Regular: &store.Regular{Address: addr("10.0.0.5"), ENIID: "eni-1"}},
			{Key: store.Key{ContainerID: "c2", IfName: "eth0"}, Network: "aws-cni", Pod: store.Pod{Namespace: "shop", Name: "a", UID: "u2"}, Since: now, Branch: &store.Branch{ENIID: "eni-b", VLAN: 7, Address: addr("10.0.2.2")}},
		},
		Cooling: []store.Cooling{{Address: addr("10.0.0.6"), ENIID: "eni-1", Until: now.Add(30 * time.Second)}},
		Leaving: []store.Leaving{{Prefix: netip.MustParsePrefix("10.0.0.7/32"), ENIID: "eni-1"}},
	}
)

// TestENIsDecodeAsTheNodesMonitoringDecodesThem: its types are restated here, by their JSON names alone.
func TestENIsDecodeAsTheNodesMonitoringDecodesThem(t *testing.T) {
	b, err := Views{ViewENIs: func() any {
		return OfENIs(all, view, map[netip.Addr]bool{addr("10.0.0.8"): true}, 30*time.Second)
	}}.JSON(ViewENIs)
	if err != nil {
		t.Fatal(err)
	}
	var got struct {
		TotalIPs, AssignedIPs int
		ENIs                  map[string]struct {
			ID                        string
			IsPrimary, IsTrunk, IsEFA bool
			DeviceNumber              int
			AvailableIPv4Cidrs        map[string]struct {
				Cidr        net.IPNet
				IPAddresses map[string]struct {
					Address                      string
					IPAMKey                      map[string]string
					IPAMMetadata                 map[string]string
					AssignedTime, UnassignedTime time.Time
					State                        string
				}
				IsPrefix bool
			}
		}
	}
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatal(err)
	}
	if got.TotalIPs != 20 || got.AssignedIPs != 1 || len(got.ENIs) != 3 || !got.ENIs["eni-3"].IsTrunk || !got.ENIs["eni-1"].IsPrimary || got.ENIs["eni-2"].DeviceNumber != 1 {
		t.Errorf("%s", b)
	}
	first := got.ENIs["eni-1"].AvailableIPv4Cidrs
	for address, state := range map[string]string{"10.0.0.5": "assigned", "10.0.0.6": "cooling", "10.0.0.7": "leaving", "10.0.0.8": "held"} {
		at := first[address+"/32"].IPAddresses[address]
		if at.Address != address || at.State != state || at.IPAMKey["containerID"] != "" || at.IPAMKey["ifName"] != "" {
			t.Errorf("%s: %+v", address, at)
		}
	}
	if at := first["10.0.0.5/32"].IPAddresses["10.0.0.5"]; at.IPAMMetadata["k8sPodName"] != "b" || !at.AssignedTime.Equal(now) {
		t.Errorf("%+v", at)
	}
	if at := first["10.0.0.6/32"].IPAddresses["10.0.0.6"]; !at.UnassignedTime.Equal(now) {
		t.Errorf("%+v", at)
	}
	prefix := got.ENIs["eni-2"].AvailableIPv4Cidrs["10.0.1.16/28"]
	if !prefix.IsPrefix || len(prefix.IPAddresses) != 16 || prefix.Cidr.String() != "10.0.1.16/28" {
		t.Errorf("%+v", prefix)
	}
}

func TestAnIPv6PrefixIsNotListedToItsEnd(t *testing.T) {
	held, far := netip.MustParseAddr("2001:db8::7"), netip.MustParseAddr("2001:db8::ffff:7")
	state := store.View{
		Allocations: []store.Allocation{{Regular: &store.Regular{Address: far, ENIID: "eni-1"}}},
		Cooling:     []store.Cooling{{Address: held.Next()}, {Address: netip.MustParseAddr("2001:db9::1")}},
	}
	v := OfENIs([]enis.ENI{{ID: "eni-1", Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8::/80")}}}, state, map[netip.Addr]bool{held: true}, 0)
	got := v.ENIs["eni-1"].IPv6["2001:db8::/80"].Addresses
	if len(got) != 3 || got[far.String()].State != "assigned" || got[held.String()].State != "held" || got[held.Next().String()].State != "cooling" || len(v.ENIs["eni-1"].IPv4) != 0 {
		t.Errorf("listed are %v", got)
	}
}

func TestPodsNameTheirSandboxAddressENIAndVLAN(t *testing.T) {
	pods := OfPods(view)
	if len(pods) != 2 || pods[0].Metadata.Name != "a" || pods[0].VLAN != 7 || pods[0].Mode != ModeStrict || pods[1].Mode != ModeRegular ||
		pods[1].IP != "10.0.0.5" || pods[1].Key.Container != "c1" || pods[1].ENI != "eni-1" || pods[1].UID != "u1" {
		t.Errorf("%+v", pods)
	}
	if b, _ := (Views{ViewPods: func() any { return OfPods(store.View{}) }}).JSON(ViewPods); string(b) != "[]" {
		t.Errorf("no pods: %s", b)
	}
}

func TestAPodWithSeveralInterfacesNamesThemAll(t *testing.T) {
	several := store.View{Allocations: []store.Allocation{{
		Key: store.Key{ContainerID: "c", IfName: "eth0"}, Pod: store.Pod{Namespace: "shop", Name: "a"}, Regular: &store.Regular{Address: addr("10.0.0.5"), ENIID: "eni-1"},
		Further: []store.Regular{{Address: addr("10.0.0.9"), ENIID: "eni-4", Card: 1, Device: 2}},
	}}}
	if p := OfPods(several); len(p) != 1 || p[0].IP != "10.0.0.5" || len(p[0].Further) != 1 || p[0].Further[0] != (Interface{"10.0.0.9", 1, 2, "eni-4"}) {
		t.Errorf("%+v", p)
	}
	second := []enis.ENI{{ID: "eni-4", Card: 1, Device: 2, Addresses: []netip.Addr{addr("10.0.0.8"), addr("10.0.0.9")}}}
	if v := OfENIs(second, several, nil, 0); v.AssignedIPs != 1 || v.ENIs["eni-4"].NetworkCard != 1 || v.ENIs["eni-4"].IPv4["10.0.0.9/32"].Addresses["10.0.0.9"].State != "assigned" {
		t.Errorf("%+v", v)
	}
}

func TestViewsAreServedAndListed(t *testing.T) {
	v := Views{"a": func() any { return map[string]int{"x": 1} }, "b": func() any { return func() {} }}
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		v.Handler().ServeHTTP(w, httptest.NewRequest(method, path, nil))
		return w.Code, w.Body.String()
	}
	for _, c := range []struct {
		method, path string
		code         int
		body         string
	}{
		{"GET", "/", 200, "/v1/a\n/v1/b\n"}, {"GET", "/v1/a", 200, `{"x":1}`}, {"GET", "/v1/none", 404, ""}, {"POST", "/v1/a", 405, ""}, {"GET", "/v1/b", 500, ""},
	} {
		if code, body := get(c.method, c.path); code != c.code || c.body != "" && body != c.body {
			t.Errorf("%s %s: %d %q", c.method, c.path, code, body)
		}
	}
	var none ErrNoView
	if _, err := v.JSON("none"); !errors.As(err, &none) || len(none.Known) != 2 {
		t.Error(err)
	}
}
