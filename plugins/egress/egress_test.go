package egress

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"pgregory.net/rapid"
)

const v6Config = `{"cniVersion":"1.0.0","name":"aws-cni","type":"egress-cni","mtu":"9001","enabled":"true","randomizeSNAT":"prng",
"ipam":{"type":"host-local","ranges":[[{"subnet":"fd00::ac:00/118"}]],"routes":[{"dst":"::/0"}],"dataDir":"/run/cni/v4pd/egress-v6-ipam"},
"pluginLogFile":"/var/log/aws-routed-eni/egress-v6-plugin.log","pluginLogLevel":"debug",
"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"enib5faff8a083"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":1,"address":"192.168.10.77/32"}],"dns":{}}}`

const v4Config = `{"cniVersion":"1.1.0","name":"aws-cni","mtu":"1500",
"ipam":{"type":"host-local","ranges":[[{"subnet":"169.254.172.0/22"}]],"dataDir":"/run/cni/v6pd/egress-v4-ipam"},
"prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"enib5faff8a083"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":1,"address":"2600:1f16:828:c404::1/128"}]}}`

func parse(t testing.TB, text string) (Config, Previous) {
	t.Helper()
	c, err := ParseConfig([]byte(text))
	if err != nil {
		t.Fatal(err)
	}
	p, err := parsePrevious(c.PrevResult)
	if err != nil {
		t.Fatal(err)
	}
	return c, p
}

func code(t testing.TB, err error) uint {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is no CNI error: %v", err, err)
	}
	return e.Code
}

func TestUpstreamsConfigurationIsUnderstood(t *testing.T) {
	c, _ := parse(t, v6Config)
	if c.Family != IPv6 || c.Subnet.String() != "fd00::ac:0/118" || c.MTU != 9001 || !c.Enabled || c.NodeIP.IsValid() || c.DataDir != "/run/cni/v4pd/egress-v6-ipam" {
		t.Errorf("%+v", c)
	}
	c, _ = parse(t, v4Config)
	if c.Family != IPv4 || c.Subnet.String() != "169.254.172.0/22" || c.MTU != 1500 || c.RandomizeSNAT != "prng" || c.LogFile != "/var/log/aws-routed-eni/egress-v4-plugin.log" {
		t.Errorf("%+v", c)
	}
	c, err := ParseConfig([]byte(strings.Replace(v4Config, `"mtu"`, `"nodeIP":"192.168.1.123","mtu"`, 1)))
	if err != nil || c.NodeIP.String() != "192.168.1.123" {
		t.Errorf("%+v, %v", c, err)
	}
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for field, change := range map[string][2]string{
		"JSON":          {`{"cniVersion"`, `{{"cniVersion"`},
		"mtu":           {`"mtu":"9001"`, `"mtu":"1279"`},
		"enabled":       {`"enabled":"true"`, `"enabled":"perhaps"`},
		"randomizeSNAT": {`"randomizeSNAT":"prng"`, `"randomizeSNAT":"dice"`},
		"ipam.type":     {`"type":"host-local"`, `"type":"dhcp"`},
		"ipam.ranges":   {`fd00::ac:00/118`, `fd00::ac:01/118`},
		"ipam.dataDir":  {`"dataDir":"/run`, `"dataDir":"run`},
		"nodeIP":        {`"mtu"`, `"nodeIP":"192.168.1.1","mtu"`},
		"name":          {`"name":"aws-cni"`, `"name":"../aws-cni"`},
	} {
		text := strings.Replace(v6Config, change[0], change[1], 1)
		if text == v6Config {
			t.Fatalf("%s: nothing changed", field)
		}
		_, err := ParseConfig([]byte(text))
		if got := code(t, err); got != types.ErrInvalidNetworkConfig && got != types.ErrDecodingFailure || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v", field, err)
		}
	}
}

func TestAPodThatNeedsNoEgressIsLeftAsItIs(t *testing.T) {
	c, p := parse(t, v6Config)
	if why := Skip(c, p, []netip.Addr{netip.MustParseAddr("fe80::1"), netip.MustParseAddr("::1"), netip.MustParseAddr("fd00::ac:5"), netip.MustParseAddr("10.0.0.1")}); why != "" {
		t.Errorf("left out: %s", why)
	}
	for name, tc := range map[string]struct {
		text  string
		inPod []netip.Addr
	}{
		"disabled":               {strings.Replace(v6Config, `"enabled":"true"`, `"enabled":"false"`, 1), nil},
		"it has the family":      {strings.Replace(v6Config, `192.168.10.77/32`, `2600::7/128`, 1), nil},
		"it has a branch ENI":    {strings.Replace(v6Config, `{"name":"enib5faff8a083"}`, `{"name":"vlanb5faff8a083"},{"name":"vlan.eth.7"}`, 1), nil},
		"somebody gave it a one": {v6Config, []netip.Addr{netip.MustParseAddr("2600::7")}},
		"a private one":          {v6Config, []netip.Addr{netip.MustParseAddr("fd12::7")}},
	} {
		c, p := parse(t, tc.text)
		if Skip(c, p, tc.inPod) == "" {
			t.Errorf("%s: it is given egress", name)
		}
	}
}

func TestTheResultIsPassedOnAndExtended(t *testing.T) {
	for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
		c, _ := parse(t, strings.ReplaceAll(v6Config, `"cniVersion":"1.0.0"`, `"cniVersion":"`+version+`"`))
		if version < "1.0.0" {
			c, _ = parse(t, strings.ReplaceAll(strings.ReplaceAll(v6Config, `"cniVersion":"1.0.0"`, `"cniVersion":"`+version+`"`), `{"interface":1`, `{"version":"4","interface":1`))
		}
		passed, err := result(c, nil, "")
		if err != nil {
			t.Fatal(err)
		}
		before, err := current.NewResultFromResult(passed)
		if err != nil {
			t.Fatal(err)
		}
		w := Plan(c, Owner{"box", "eth0"}, netip.MustParseAddr("fd00::ac:2"))
		out, err := result(c, &w, "/run/netns/x")
		if err != nil {
			t.Fatal(err)
		}
		as, err := out.GetAsVersion(version)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := json.Marshal(as)
		if err != nil {
			t.Fatal(err)
		}
		after, err := current.NewResultFromResult(out)
		if err != nil {
			t.Fatal(err)
		}
		if len(before.Interfaces) != 2 || len(after.Interfaces) != 4 || after.Interfaces[0].Name != "enib5faff8a083" || after.Interfaces[3].Sandbox != "/run/netns/x" {
			t.Errorf("%s: %s", version, raw)
		}
		last := after.IPs[len(after.IPs)-1]
		if len(after.IPs) != 2 || last.Address.String() != "fd00::ac:2/128" || *last.Interface != 3 || after.IPs[0].Address.String() != before.IPs[0].Address.String() {
			t.Errorf("%s: %s", version, raw)
		}
	}
}

func TestNamesAndMarksAreTheSandboxsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		id := rapid.StringMatching(`[a-zA-Z0-9][a-zA-Z0-9_.-]{0,300}`)
		a, b := Owner{id.Draw(t, "a"), "eth0"}, Owner{id.Draw(t, "b"), "eth0"}
		for _, f := range []Family{IPv4, IPv6} {
			if name := a.HostLink(f); len(name) > 15 || !IsOurs(name) || (name == b.HostLink(f)) != (a == b) {
				t.Fatalf("%s and %s", name, b.HostLink(f))
			}
		}
		if m := a.Mark(); len(m) > maxAlias || (m == b.Mark()) != (a == b) {
			t.Fatalf("%s and %s", m, b.Mark())
		}
		if a.HostLink(IPv4) == a.HostLink(IPv6) {
			t.Fatal("one name for both families")
		}
	})
}

func TestAddressesAreKeptGivenBackAndNeverShared(t *testing.T) {
	c, _ := parse(t, strings.Replace(v4Config, "169.254.172.0/22", "169.254.172.0/29", 1))
	c.DataDir = t.TempDir()
	ctx := t.Context()
	seen := map[netip.Addr]Owner{}
	owner := func(i int) Owner { return Owner{string(rune('a' + i)), "eth0"} }
	for i := range 5 { // .0 and .7 are nobody's, .1 is the gateway
		for range 2 {
			a, err := allocate(ctx, c, owner(i))
			if err != nil {
				t.Fatal(err)
			}
			if other, taken := seen[a]; taken && other != owner(i) || !c.Subnet.Contains(a) || a == c.Subnet.Addr().Next() {
				t.Fatalf("%s for %s, %s has it", a, owner(i), other)
			}
			seen[a] = owner(i)
		}
	}
	if len(seen) != 5 {
		t.Fatalf("%v", seen)
	}
	if _, err := allocate(ctx, c, owner(5)); toCNI("ADD", err).Code != types.ErrTryAgainLater || !strings.Contains(err.Error(), c.DataDir) {
		t.Errorf("full: %v", err)
	}
	// An executable was killed between making a file and writing it.
	if err := os.WriteFile(filepath.Join(c.DataDir, c.Name, "169.254.172.2"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := collect(ctx, c, func(o Owner) bool { return o != owner(3) }); err != nil {
		t.Fatal(err)
	}
	for i, want := range []bool{false, true, true, false, true} {
		a, err := heldBy(ctx, c, owner(i))
		if err != nil || a.IsValid() != want {
			t.Errorf("%s holds %v, %v", owner(i), a, err)
		}
	}
	for range 2 {
		if err := release(ctx, c, owner(4)); err != nil {
			t.Fatal(err)
		}
	}
	if a, _ := heldBy(ctx, c, owner(4)); a.IsValid() {
		t.Error("given back, and still held")
	}
}

func TestTheRulesGoByTheSubnet(t *testing.T) {
	for _, text := range []string{v4Config, v6Config} {
		c, _ := parse(t, text)
		r := rulesFor(c)
		if len(r.chains) != 2 || len(r.rules) != 2 || r.table.Name != TableName {
			t.Fatalf("%+v", r)
		}
		other := c
		other.RandomizeSNAT = "none"
		if slices.Equal(c.stamp(), other.stamp()) {
			t.Error("a changed configuration would not be noticed")
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(v6Config))
	f.Add([]byte(v4Config))
	f.Add([]byte(`{"ipam":{"ranges":[[]]},"cni.dev/valid-attachments":[{"containerID":"a","ifname":"b"}],"cni.dev/attachments":null}`))
	f.Add([]byte(`{"prevResult":{"interfaces":[null],"ips":[null]}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseConfig(in)
		if err != nil {
			code(t, err)
		}
		p, perr := parsePrevious(c.PrevResult)
		if perr != nil {
			code(t, perr)
		}
		if err != nil || perr != nil {
			return
		}
		if c.MTU < minMTU || c.MTU > maxMTU || c.Family != FamilyOf(c.Subnet.Addr()) || c.Name == "" || c.DataDir == "" || c.LogFile == "" {
			t.Fatalf("unusable: %+v", c)
		}
		w := Plan(c, Owner{"box", "eth0"}, c.Subnet.Addr().Next().Next())
		rulesFor(c)
		Skip(c, p, nil)
		if r, err := result(c, &w, "/x"); err == nil && r == nil {
			t.Fatal("no result")
		}
	})
}
