//go:build kernel

package eni

import (
	"encoding/json"
	"os/exec"
	"strings"
	"testing"

	"github.com/containernetworking/cni/pkg/types"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

func TestBadInputIsNamedAndLeavesNothing(t *testing.T) {
	for _, tc := range []struct {
		name  string
		harm  func(*node, *sandbox)
		code  uint
		names []string
	}{
		{"netns missing", func(n *node, s *sandbox) { s.netns = "/run/netns/gone" }, types.ErrUnknownContainer, []string{"/run/netns/gone"}},
		{"netns is a file", func(n *node, s *sandbox) { s.netns = "/etc/hostname" }, types.ErrInvalidNetNS, []string{"/etc/hostname"}},
		{"netns is another kind of namespace", func(n *node, s *sandbox) { s.netns = "/proc/self/ns/mnt" }, types.ErrInvalidNetNS, []string{"not a network"}},
		{"netns is the host's", func(n *node, s *sandbox) { s.netns = n.host.Path() }, types.ErrInvalidNetNS, []string{"host's own"}},
		{"bad mtu", func(n *node, s *sandbox) { n.config["mtu"] = "jumbo" }, types.ErrInvalidNetworkConfig, []string{"mtu", "jumbo"}},
		{"mtu of the wrong type", func(n *node, s *sandbox) { n.config["mtu"] = 9001 }, types.ErrInvalidNetworkConfig, []string{"mtu", "string"}},
		{"bad prefix", func(n *node, s *sandbox) { n.config["vethPrefix"] = "vlan" }, types.ErrInvalidNetworkConfig, []string{"vethPrefix"}},
		{"bad mode", func(n *node, s *sandbox) { n.config["podSGEnforcingMode"] = "lax" }, types.ErrInvalidNetworkConfig, []string{"podSGEnforcingMode", "lax"}},
		{"mtu out of range", func(n *node, s *sandbox) { n.config["mtu"] = "70000" }, types.ErrInvalidNetworkConfig, []string{"mtu", "70000"}},
		{"bad socket", func(n *node, s *sandbox) { n.config["ipamdSocket"] = "run/s" }, types.ErrInvalidNetworkConfig, []string{"ipamdSocket", "run/s"}},
		{"netns of a process that is gone", func(n *node, s *sandbox) { s.netns = "/proc/4194304/ns/net" }, types.ErrUnknownContainer, []string{"/proc/4194304/ns/net"}},
		{"no netns", func(n *node, s *sandbox) { s.netns = "" }, types.ErrInvalidEnvironmentVariables, []string{"CNI_NETNS"}},
		{"no pod in CNI_ARGS", func(n *node, s *sandbox) { s.args = "none" }, types.ErrInvalidEnvironmentVariables, []string{"CNI_ARGS", "K8S_POD_NAMESPACE"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.agent.set(goldenPod, regularReply(regularIP, 2))
			s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
			tc.harm(n, &s)
			_, err := n.add("1.0.0", s)
			wantCode(t, err, tc.code, tc.names...)
			n.wantClean()
			if n.agent.holds() != 0 {
				t.Error("the agent was asked")
			}
		})
	}
}

// TestBadInputOfTheProtocolIsNamed runs the executable by hand: the runtime's library lets none of this through.
func TestBadInputOfTheProtocolIsNamed(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	pod := nstest.New(t)
	namespace, name, _ := strings.Cut(goldenPod, "/")
	conf := `{"cniVersion":"1.0.0","name":"aws-cni","type":"aws-cni","pluginLogFile":"stderr","ipamdSocket":"` + n.agent.socket + `"}`
	for _, tc := range []struct {
		name       string
		env, value string // one variable that is changed; the value "-" takes it away
		conf       string
		code       uint
		part       string
	}{
		{name: "configuration is not JSON", conf: `{"cniVersion":`, code: types.ErrDecodingFailure, part: "network config"},
		{name: "configuration is empty", conf: " ", code: types.ErrDecodingFailure, part: "network config"},
		{name: "configuration is an array", conf: `[]`, code: types.ErrDecodingFailure, part: "network config"},
		{name: "network without a name", conf: `{"cniVersion":"1.0.0","type":"aws-cni"}`, code: types.ErrInvalidNetworkConfig, part: "name"},
		{name: "network with a bad name", conf: `{"cniVersion":"1.0.0","name":"a/b","type":"aws-cni"}`, code: types.ErrInvalidNetworkConfig, part: "a/b"},
		{name: "version of the future", conf: `{"cniVersion":"9.9.9","name":"aws-cni","type":"aws-cni"}`, code: types.ErrIncompatibleCNIVersion, part: "9.9.9"},
		{name: "unknown command", env: "CNI_COMMAND", value: "MEND", code: types.ErrInvalidEnvironmentVariables, part: "MEND"},
		{name: "no sandbox", env: "CNI_CONTAINERID", value: "-", code: types.ErrInvalidEnvironmentVariables, part: "CNI_CONTAINERID"},
		{name: "bad sandbox", env: "CNI_CONTAINERID", value: "a/b", code: types.ErrInvalidEnvironmentVariables, part: "a/b"},
		{name: "no interface", env: "CNI_IFNAME", value: "-", code: types.ErrInvalidEnvironmentVariables, part: "CNI_IFNAME"},
		{name: "interface's name too long", env: "CNI_IFNAME", value: "sixteenletterssss", code: types.ErrInvalidEnvironmentVariables, part: "interface name"},
		{name: "no network namespace", env: "CNI_NETNS", value: "-", code: types.ErrInvalidEnvironmentVariables, part: "CNI_NETNS"},
		{name: "no arguments", env: "CNI_ARGS", value: "-", code: types.ErrInvalidEnvironmentVariables, part: "K8S_POD_NAMESPACE"},
		{name: "arguments without =", env: "CNI_ARGS", value: "K8S_POD_NAMESPACE", code: types.ErrInvalidEnvironmentVariables, part: "CNI_ARGS"},
		{name: "arguments without a pod", env: "CNI_ARGS", value: "IgnoreUnknown=1;K8S_POD_NAMESPACE=a", code: types.ErrInvalidEnvironmentVariables, part: "K8S_POD_NAME"},
		{name: "unknown argument", env: "CNI_ARGS", value: "K8S_POD_NAMESPACE=a;K8S_POD_NAME=b;COLOUR=red", code: types.ErrInvalidEnvironmentVariables, part: "COLOUR"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			env := map[string]string{
				"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "sandbox-1", "CNI_NETNS": pod.Path(), "CNI_IFNAME": "eth0", "CNI_PATH": n.bin,
				"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=" + namespace + ";K8S_POD_NAME=" + name,
			}
			if tc.value == "-" {
				delete(env, tc.env)
			} else if tc.env != "" {
				env[tc.env] = tc.value
			}
			if tc.env != "" {
				tc.conf = conf
			}
			c := exec.Command(executable(t))
			for k, v := range env {
				c.Env = append(c.Env, k+"="+v)
			}
			c.Stdin = strings.NewReader(tc.conf)
			var out []byte
			if err := n.host.Try(func() (err error) { out, err = c.Output(); return err }); err == nil {
				t.Fatalf("accepted: %s", out)
			}
			var e types.Error
			if err := json.Unmarshal(out, &e); err != nil {
				t.Fatalf("the answer is no CNI error: %q", out)
			}
			wantCode(t, &e, tc.code, tc.part)
			n.wantClean()
			if n.agent.holds() != 0 {
				t.Error("the agent holds something")
			}
		})
	}
}
