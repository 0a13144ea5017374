package eni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"
	cniversion "github.com/containernetworking/cni/pkg/version"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/unary"
)

func cniCode(t testing.TB, err error) uint {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("%T is no CNI error: %v", err, err)
	}
	return e.Code
}

func TestConfigErrorsNameTheField(t *testing.T) {
	for text, want := range map[string]struct {
		code uint
		name string
	}{
		`{`:                                   {types.ErrDecodingFailure, "JSON"},
		`{"mtu":"70000"}`:                     {types.ErrInvalidNetworkConfig, "mtu"},
		`{"mtu":9001}`:                        {types.ErrInvalidNetworkConfig, "mtu"},
		`{"vethPrefix":"toolong"}`:            {types.ErrInvalidNetworkConfig, "vethPrefix"},
		`{"vethPrefix":"lo"}`:                 {types.ErrInvalidNetworkConfig, "vethPrefix"},
		`{"vethPrefix":"e/i"}`:                {types.ErrInvalidNetworkConfig, "vethPrefix"},
		`{"podSGEnforcingMode":"lax"}`:        {types.ErrInvalidNetworkConfig, "podSGEnforcingMode"},
		`{"pluginLogFile":[]}`:                {types.ErrInvalidNetworkConfig, "pluginLogFile"},
		`{"ipamdSocket":"run/ipamd.sock"}`:    {types.ErrInvalidNetworkConfig, "ipamdSocket"},
		`{"ipamdSocket":["/run/ipamd.sock"]}`: {types.ErrInvalidNetworkConfig, "ipamdSocket"},
	} {
		c, err := ParseConfig([]byte(text))
		if code := cniCode(t, err); code != want.code || !strings.Contains(err.Error(), want.name) {
			t.Errorf("%s: code %d, %v; want code %d and the name %s", text, code, err, want.code, want.name)
		}
		if c.MTU != defaultMTU || c.VethPrefix != defaultVethPrefix || c.Socket != rpc.SocketPath {
			t.Errorf("%s: what a DEL would work with: %+v", text, c)
		}
	}
	c, err := ParseConfig([]byte(`{"cniVersion":"1.0.0","name":"aws-cni","vethPrefix":"abc","mtu":"1500","podSGEnforcingMode":"strict",
		"pluginLogLevel":"DEBUG","ipamdSocket":"/run/x.sock","prevResult":null,"runtimeConfig":{"a":1}}`))
	if err != nil || c.MTU != 1500 || c.VethPrefix != "abc" || c.LogLevel != "debug" || c.Socket != "/run/x.sock" || c.PrevResult != nil {
		t.Errorf("good config: %+v, %v", c, err)
	}
}

func TestABadLogSettingIsToldAndNeverFailsAnADD(t *testing.T) {
	c, err := ParseConfig([]byte(`{"pluginLogFile":"stdout","pluginLogLevel":"chatty"}`))
	if err != nil || c.LogFile != defaultLogFile || c.LogLevel != "info" || len(c.Ignored) != 2 {
		t.Errorf("%+v, %v", c, err)
	}
	for _, name := range []string{"pluginLogFile", "pluginLogLevel"} {
		if !strings.Contains(strings.Join(c.Ignored, " "), name) {
			t.Errorf("%q doesn't name %s", c.Ignored, name)
		}
	}
}

func TestArgsErrorsNameTheKey(t *testing.T) {
	for args, name := range map[string]string{
		"":                                  "K8S_POD_NAMESPACE",
		"K8S_POD_NAMESPACE=a;K8S_POD_NAME=": "K8S_POD_NAME",
		"K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;OTHER=1":         "OTHER",
		"K8S_POD_NAMESPACE":                                  "K8S_POD_NAMESPACE",
		"K8S_POD_NAMESPACE=../x;K8S_POD_NAME=b":              "K8S_POD_NAMESPACE",
		"IgnoreUnknown=perhaps":                              "IgnoreUnknown",
		"CommonArgs=1;K8S_POD_NAMESPACE=a;K8S_POD_UID=u;X=1": "X",
	} {
		if _, err := parseArgs(args); cniCode(t, err) != types.ErrInvalidEnvironmentVariables || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: %v, want it to name %s", args, err, name)
		}
	}
	p, err := parseArgs("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=c;K8S_POD_UID=u;X=y")
	if err != nil || p != (podArgs{"shop", "web", "u", "c"}) {
		t.Errorf("good args: %+v, %v", p, err)
	}
}

func TestErrorsOfTheAgentHaveTheSpecificationsCodes(t *testing.T) {
	for err, want := range map[error]uint{
		&unary.Error{Code: unary.Unavailable, Message: "starting"}:               types.ErrTryAgainLater,
		&unary.Error{Code: unary.DeadlineExceeded, Message: "no annotation yet"}: types.ErrTryAgainLater,
		&unary.Error{Code: unary.ResourceExhausted, Message: "no address"}:       types.ErrTryAgainLater,
		&unary.Error{Code: unary.NotFound, Message: "pod unknown"}:               types.ErrUnknownContainer,
		&unary.Error{Code: unary.InvalidArgument, Message: "no name"}:            types.ErrInvalidEnvironmentVariables,
		&unary.Error{Code: unary.FailedPrecondition, Message: "refused"}:         CodeRefused,
		&unary.Error{Code: unary.Unimplemented, Message: "what"}:                 CodeUnsupported,
		&unary.Error{Code: unary.Internal, Message: "bug"}:                       types.ErrInternal,
		fmt.Errorf("dial: %w", rpc.ErrPeerRefused):                               CodePeer,
		badReply{errors.New("vlan id 0")}:                                        CodeBadReply,
		fmt.Errorf("claim: %w", datapath.ErrConflict):                            CodeConflict,
		&datapath.StepError{Step: datapath.AddVLAN{}, Err: context.Canceled}:     types.ErrTryAgainLater,
		&datapath.StepError{Step: datapath.AddVLAN{}, Err: errors.New("no")}:     CodeWiring,
		types.NewError(types.ErrInvalidNetworkConfig, "mtu", ""):                 types.ErrInvalidNetworkConfig,
	} {
		if got := toCNI("ADD of pod a/b", err); got.Code != want {
			t.Errorf("%v: code %d, want %d", err, got.Code, want)
		}
	}
	if toCNI("ADD", nil) != nil {
		t.Error("no error became one")
	}
}

func TestResultTellsDELEverythingInEveryVersion(t *testing.T) {
	const pod, strict, regular = "coredns-57ff979f67-qqbdh", "vlanb5faff8a083", "enib5faff8a083"
	for name, tc := range map[string]struct {
		reply             *rpc.AddReply
		veth, ip, gateway string
		vlan              int
	}{
		"strict":           {branchReply(7, "06:20:0d:3c:5f:bc", "192.168.47.64", 3), strict, "192.168.47.64/32", "169.254.1.1", 7},
		"standard":         {standard(branchReply(7, "06:20:0d:3c:5f:bc", "192.168.47.64", 3)), regular, "192.168.47.64/32", "169.254.1.1", 7},
		"strict of IPv6":   {branchReply6(7, "06:20:0d:3c:5f:bc", "2001:db8:1::64", 3), strict, "2001:db8:1::64/128", "fe80::1", 7},
		"standard of IPv6": {standard(branchReply6(7, "06:20:0d:3c:5f:bc", "2001:db8:1::64", 3)), regular, "2001:db8:1::64/128", "fe80::1", 7},
		"regular of IPv6":  {regularReply("2001:db8::77", 0), regular, "2001:db8::77/128", "fe80::1", 0},
	} {
		w, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, podArgs{Namespace: "kube-system", Name: pod}, datapath.Owner{ContainerID: "c", IfName: "eth0"}, tc.reply)
		if err != nil {
			t.Fatal(err)
		}
		for _, version := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			out, err := newResult(w, "/run/netns/x").GetAsVersion(version)
			if err != nil {
				t.Fatal(err)
			}
			raw, err := json.Marshal(out)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := cniversion.NewResult(version, raw); err != nil {
				t.Errorf("%s, %s: %v", name, version, err)
			}
			p, err := parsePrevious(raw, "eth0")
			if err != nil || p.vlan != tc.vlan || p.hostVeth != tc.veth || p.address != w.address || !p.known {
				t.Errorf("%s, %s: DEL reads %+v, %v from %s", name, version, p, err, raw)
			}
			if tc.vlan != 0 && !strings.Contains(string(raw), "06:20:0d:3c:5f:bc") {
				t.Errorf("%s, %s: the branch ENI's MAC is not in %s", name, version, raw)
			}
			var ips struct {
				IPs    []struct{ Version, Address, Gateway string }
				Routes []struct{ Dst, GW string }
			}
			if err := json.Unmarshal(raw, &ips); err != nil {
				t.Fatal(err)
			}
			family, everything := "4", "0.0.0.0/0"
			if w.address.Is6() {
				family, everything = "6", "::/0"
			}
			if version >= "1.0.0" {
				family = "" // the field is no more
			}
			if i := ips.IPs; len(i) != 1 || i[0].Version != family || i[0].Address != tc.ip || i[0].Gateway != tc.gateway {
				t.Errorf("%s, %s: ips %+v", name, version, i)
			}
			if r := ips.Routes; len(r) != 1 || r[0].Dst != everything || r[0].GW != tc.gateway {
				t.Errorf("%s, %s: routes %+v", name, version, r)
			}
		}
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","name":"aws-cni","mtu":"9001","vethPrefix":"eni","prevResult":{"cniVersion":"1.0.0"}}`))
	f.Add([]byte(`{"mtu":{},"ipamdSocket":"/a"}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"aws-cni","type":"aws-cni","podSGEnforcingMode":"standard","pluginLogFile":"stderr","cni.dev/attachments":[{"containerID":"a","ifname":"eth0"}]}`))
	f.Add([]byte(`{"cniVersion":"0.3.1","mtu":"575","vethPrefix":"vlan","pluginLogLevel":7,"runtimeConfig":null,"prevResult":null}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		c, err := ParseConfig(in)
		if err != nil {
			cniCode(t, err)
		}
		if c.MTU < minMTU || c.MTU > maxMTU || datapath.CheckVethPrefix(c.VethPrefix) != nil || len(c.Socket) > maxSocketPath || c.LogFile == "" {
			t.Fatalf("unusable: %+v", c)
		}
	})
}

func FuzzArgs(f *testing.F) {
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;K8S_POD_UID=c")
	f.Add("CommonArgs=1;IgnoreUnknown=x")
	f.Add(";;=;==")
	f.Add("IgnoreUnknown=1;K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=coredns-57ff979f67-qqbdh;K8S_POD_INFRA_CONTAINER_ID=0123;K8S_POD_UID=4b6d")
	f.Add("K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=c=d")
	f.Fuzz(func(t *testing.T, in string) {
		p, err := parseArgs(in)
		if err != nil {
			cniCode(t, err)
			return
		}
		if p.Name == "" || p.Namespace == "" || strings.Contains(p.Name+p.Namespace, "/") {
			t.Fatalf("accepted %+v", p)
		}
	})
}

func FuzzPrevResult(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.0.0","interfaces":[{"name":"enib5faff8a083"},{"name":"eth0","sandbox":"/x"},{"name":"vlan.eth.7"}],"ips":[{"address":"10.0.0.1/32"}]}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"enib5faff8a083"},{"name":"eth0","sandbox":"/x"},{"name":"eni0123456789a"},{"name":"mNicIf1","sandbox":"/x"}],"ips":[{"address":"10.0.0.1/32","interface":1},{"address":"10.0.1.1/32","interface":3}]}`))
	f.Add([]byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"mNicIf1","sandbox":"/x"},{"name":"mNicIf1","sandbox":"/x"},null],"ips":[{"address":"10.0.1.1/32","interface":-1e300},{"address":"10.0.1.1/32","interface":1e300}]}`))
	// An index that no int holds, where there is a further interface to give an address to.
	f.Add([]byte(`{"interfaces":[{"name":"0"},{"name":"mNicIf1","sandbox":"0"}],"ips":[{"address":"10.0.1.1/32","interface":1e20},{"address":"10.0.1.1/32","interface":-1e20},{"address":"10.0.1.1/32","interface":1.5}]}`))
	f.Add([]byte(`{"cniVersion":"0.3.1","interfaces":[null],"ips":[{"version":"4","address":"10.0.0.1/32"},null]}`))
	f.Add([]byte(`{"ip4":{"ip":"10.0.0.1/32"}}`))
	f.Add([]byte(`[]`))
	// Upstream's, of a branch and of a regular pod: its numbers are in the Mac fields.
	f.Add([]byte(`{"cniVersion":"0.4.0","interfaces":[{"name":"vlanb5faff8a083"},{"name":"eth0","mac":"107","sandbox":"/x"},{"name":"dummyb5faff8a083","mac":"7"}],"ips":[{"version":"4","interface":1,"address":"192.168.47.64/32"}]}`))
	f.Add([]byte(`{"cniVersion":"0.4.0","interfaces":[{"name":"enib5faff8a083"},{"name":"eth0","mac":"2","sandbox":"/x"},{"name":"dummyb5faff8a083","mac":"0","sandbox":"1"}],"ips":[{"version":"4","interface":1,"address":"192.168.10.77/32"}]}`))
	// Other plugins': of ptp, and of a later spec version.
	f.Add([]byte(`{"cniVersion":"1.1.0","interfaces":[{"name":"veth1","mac":"2a:0:0:0:0:1","mtu":1500,"socketPath":"/s"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":1,"address":"2001:db8::5/64"}],"routes":[{"dst":"::/0","mtu":1400}],"dns":{}}`))
	f.Fuzz(func(t *testing.T, in []byte) {
		p, err := parsePrevious(in, "eth0")
		if err != nil && p.known {
			t.Fatal("known with an error")
		}
		if p.vlan < 0 || p.vlan > datapath.MaxVLAN || len(p.hostVeth) > 15 || p.address.IsValid() && !datapath.Usable(p.address) {
			t.Fatalf("unusable: %+v", p)
		}
		seen := map[int]bool{}
		for _, l := range p.further {
			if l.Number < 1 || l.Number > datapath.MaxFurther || seen[l.Number] || l.HostVeth == "" || len(l.HostVeth) > 15 || l.Address.IsValid() && !datapath.Usable(l.Address) {
				t.Fatalf("unusable: %+v", p.further)
			}
			seen[l.Number] = true
		}
	})
}

// FuzzFurther: whatever further interfaces the agent's answer has, they are refused, or each has an address and a link of its own.
func FuzzFurther(f *testing.F) {
	f.Add("192.168.11.77", uint32(1), uint32(10101), "192.168.12.77", uint32(2), uint32(0))
	f.Add("192.168.10.7", uint32(0), uint32(511), "2001:db8::1", uint32(1<<31), uint32(1<<31))
	f.Fuzz(func(t *testing.T, a1 string, card1, table1 uint32, a2 string, card2, table2 uint32) {
		reply := regularReply("192.168.10.7", 0)
		reply.Further = []*rpc.RegularInterface{{Address: a1, NetworkCard: card1, RouteTable: table1}, {Address: a2, NetworkCard: card2, RouteTable: table2}}
		w, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, podArgs{Namespace: "a", Name: "b"}, datapath.Owner{ContainerID: "c", IfName: "eth0"}, reply)
		if err != nil {
			if toCNI("ADD", err).Code != CodeBadReply {
				t.Fatalf("code of %v", err)
			}
			return
		}
		addresses, links := map[string]bool{w.address.String(): true}, map[string]bool{w.plan.HostVeth.Host: true, "eth0": true}
		for _, veth := range w.plan.Further {
			addresses[veth.Mark.Address.String()], links[veth.Host], links[veth.Pod] = true, true, true
		}
		if len(addresses) != 3 || len(links) != 6 || card1 == 0 || card2 <= card1 {
			t.Fatalf("accepted %+v", w.plan.Further)
		}
	})
}

func FuzzReply(f *testing.F) {
	f.Add(true, uint32(7), "06:20:0d:3c:5f:bc", "192.168.47.64", "192.168.32.0/19", "192.168.32.1", uint32(3))
	f.Add(false, uint32(2), "", "192.168.10.7", "", "", uint32(0))
	f.Add(true, uint32(0), "ff:ff:ff:ff:ff:ff", "::1", "0.0.0.0/0", "0.0.0.0", uint32(1<<31))
	f.Add(true, uint32(7), "06:20:0d:3c:5f:bc", "2001:db8:1::64", "", "fe80:ec2::1", uint32(3))
	f.Add(false, uint32(0), "", "2001:db8::77", "", "", uint32(0))
	f.Fuzz(func(t *testing.T, branch bool, n uint32, mac, address, subnet, gateway string, trunk uint32) {
		reply := regularReply(address, n)
		if branch {
			reply = &rpc.AddReply{Interface: &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
				VlanId: n, Mac: mac, Address: address, SubnetCidr: subnet, Gateway: gateway, TrunkIfindex: trunk,
			}}}
		}
		w, err := planReply(Config{VethPrefix: "eni", MTU: 9001}, podArgs{Namespace: "a", Name: "b"}, datapath.Owner{ContainerID: "c", IfName: "eth0"}, reply)
		if err != nil {
			if toCNI("ADD", err).Code != CodeBadReply {
				t.Fatalf("code of %v", err)
			}
			return
		}
		if branch && (n < 1 || n > 120 || len(w.plan.VLAN.MAC) != 6 || net.HardwareAddr(w.plan.VLAN.MAC)[0]&1 != 0) {
			t.Fatalf("accepted %+v", w)
		}
		if !datapath.Usable(w.address) || len(w.plan.Steps) == 0 {
			t.Fatalf("accepted %+v", w)
		}
	})
}
