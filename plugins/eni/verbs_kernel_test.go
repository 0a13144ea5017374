//go:build kernel

package eni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// specVersions are those that VERSION declares.
var specVersions = []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"}

// verb runs f with the network's list of a version, in the host's namespace.
func (n *node) verb(version string, f func(context.Context, *libcni.CNIConfig, *libcni.NetworkConfigList) error) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	list := n.list(version)
	list.DisableCheck = false
	return n.host.Try(func() error { return f(ctx, n.cni(), list) })
}

func (n *node) check(version string, s sandbox) error {
	n.t.Helper()
	return n.verb(version, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.CheckNetworkList(ctx, l, s.runtimeConf())
	})
}

func (n *node) status() error {
	n.t.Helper()
	return n.verb("1.1.0", func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return c.GetStatusNetworkList(ctx, l)
	})
}

// gc has a cache of its own: the library would DEL by the results that it has cached, and GC is for when there are none.
func (n *node) gc(valid ...sandbox) error {
	n.t.Helper()
	args := &libcni.GCArgs{}
	for _, s := range valid {
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: s.id, IfName: s.ifName})
	}
	return n.verb("1.1.0", func(ctx context.Context, _ *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.t.TempDir(), nil).GCNetworkList(ctx, l, args)
	})
}

func (n *node) logged() string {
	n.t.Helper()
	text, err := os.ReadFile(n.config["pluginLogFile"].(string))
	if err != nil {
		n.t.Fatal(err)
	}
	return string(text)
}

func TestVersionsAndResultsOfEachSpec(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	var declared []string
	n.host.Do(t, func() error {
		info, err := n.cni().GetVersionInfo(t.Context(), "aws-cni")
		if err == nil {
			declared = info.SupportedVersions()
		}
		return err
	})
	if !slices.Equal(declared, specVersions) {
		t.Errorf("VERSION says %v", declared)
	}
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	for _, version := range specVersions {
		t.Run(version, func(t *testing.T) {
			n.t = t
			s := newSandbox("sandbox-"+version, goldenPod, nstest.New(t))
			res, err := n.add(version, s)
			if err != nil || res.Version() != version {
				t.Fatalf("ADD: %v, %v", res, err)
			}
			del := func(s sandbox) error {
				return n.verb(version, func(ctx context.Context, c *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
					return c.DelNetworkList(ctx, l, s.runtimeConf())
				})
			}
			err = n.check(version, s)
			if version == "0.3.1" {
				if err == nil || !strings.Contains(err.Error(), "CHECK") {
					t.Errorf("CHECK of a version that has none: %v", err)
				}
			} else if err != nil {
				t.Errorf("CHECK: %v", err)
			}
			n.forget()
			s.netns = ""
			if err := del(s); err != nil {
				t.Errorf("DEL without prevResult and network namespace: %v", err)
			}
			// What no result tells of is the rule from the address: the agent's marks have done away with it.
			n.wantClean()
			failed := newSandbox("failed-"+version, "shop/unknown", nstest.New(t))
			if _, err := n.add(version, failed); err == nil {
				t.Error("ADD of a pod that the agent doesn't know")
			}
			if err := del(failed); err != nil {
				t.Errorf("DEL after a failed ADD: %v", err)
			}
			if err := del(failed); err != nil {
				t.Errorf("once more: %v", err)
			}
			n.wantClean()
		})
	}
}

// TestCHECKNamesTheFirstDifference harms what ADD has made, with and without the agent.
func TestCHECKNamesTheFirstDifference(t *testing.T) {
	for name, kind := range map[string]struct {
		reply func(*node) *rpc.AddReply
		veth  string
		ip    string
		rule  func(*netlink.Rule)
	}{
		"strict": {func(n *node) *rpc.AddReply { return branchReply(7, branchMAC, branchIP, n.trunk()) }, "vlan" + goldenHash, branchIP,
			func(r *netlink.Rule) { r.Priority, r.IifName, r.Table = 10, "vlan.eth.7", 107 }},
		"standard": {func(n *node) *rpc.AddReply { return standard(branchReply(7, branchMAC, branchIP, n.trunk())) }, "eni" + goldenHash, branchIP,
			func(r *netlink.Rule) { r.Priority, r.IifName, r.Table = 1537, "eni"+goldenHash, 107 }},
		"regular": {func(*node) *rpc.AddReply { return regularReply(regularIP, 0) }, "eni" + goldenHash, regularIP, nil},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP)
			n.agent.set(goldenPod, kind.reply(n))
			pod := nstest.New(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			for _, away := range []bool{false, true} {
				n.mustAdd(s)
				if away {
					n.agent.stop()
				}
				for _, version := range []string{"0.4.0", "1.0.0", "1.1.0"} {
					if err := n.check(version, s); err != nil {
						t.Errorf("agent away %t: CHECK at %s: %v", away, version, err)
					}
				}
				if away && !strings.Contains(n.logged(), "away or older") {
					t.Error("the log does not say that the agent was away")
				}
				// Configured otherwise meanwhile: the pod keeps what it has.
				n.config["mtu"], n.config["vethPrefix"] = "1500", "ce"
				if err := n.check("1.1.0", s); err != nil {
					t.Errorf("agent away %t: after a change of the configuration: %v", away, err)
				}
				n.config["mtu"], n.config["vethPrefix"] = "9001", "eni"
				if kind.rule != nil {
					r := netlink.NewRule()
					kind.rule(r)
					if err := n.host.Handle.RuleDel(r); err != nil {
						t.Fatal(err)
					}
					wantCode(t, n.check("1.1.0", s), CodeDifferent, fmt.Sprintf("rule %d", r.Priority), "missing", goldenPod)
					if err := n.host.Handle.RuleAdd(r); err != nil {
						t.Fatal(err)
					}
				}
				eth0 := pod.Link(t, "eth0")
				if err := pod.Handle.NeighDel(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, IP: net.IPv4(169, 254, 1, 1)}); err != nil {
					t.Fatal(err)
				}
				wantCode(t, n.check("1.0.0", s), CodeDifferent, "neighbour 169.254.1.1", "eth0")
				n.agent.stop()
				n.agent.start(t)
				n.mustDel(s)
				wantCode(t, n.check("1.0.0", s), types.ErrUnknownContainer, "holds nothing")
				n.agent.stop()
				wantCode(t, n.check("1.0.0", s), CodeDifferent, kind.veth, "missing")
				n.agent.start(t)
				n.wantClean()
			}
		})
	}
}

func TestCHECKComparesThePreviousResult(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 0))
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	n.forget()
	if err := n.check("1.0.0", s); err != nil {
		t.Errorf("without a result the kernel is compared: %v", err)
	}
	n.cacheResult("1.0.0", s, map[string]any{
		"interfaces": []map[string]any{{"name": "eni" + goldenHash, "mac": "02:00:00:00:00:01"}, {"name": "eth0", "sandbox": s.netns}},
		"ips":        []map[string]any{{"address": regularIP + "/32", "interface": 1}},
	})
	wantCode(t, n.check("1.0.0", s), CodeDifferent, "interface eni"+goldenHash+" of prevResult", "02:00:00:00:00:01")
	n.mustDel(s)
	n.wantClean()
}

// cacheResult puts a result into the runtime's cache.
func (n *node) cacheResult(version string, s sandbox, result map[string]any) {
	n.t.Helper()
	result["cniVersion"] = version
	text, err := json.Marshal(map[string]any{
		"kind": "cniCacheV1", "containerId": s.id, "ifName": s.ifName, "networkName": "aws-cni", "result": result,
		"cniArgs": s.runtimeConf().Args,
	})
	if err != nil {
		n.t.Fatal(err)
	}
	dir := filepath.Join(n.cache, "results")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "aws-cni-"+s.id+"-"+s.ifName), text, 0o600); err != nil {
		n.t.Fatal(err)
	}
}

func TestSTATUSKnowsAnAgentThatIsReplacedFromOneThatIsAway(t *testing.T) {
	n := newNode(t)
	wantCode(t, n.status(), CodeNotAvailable, "can't be reached", "not been ready since")
	n.agent.start(t)
	n.agent.says(&rpc.StatusReply{Message: "the ENIs are not known"})
	wantCode(t, n.status(), CodeNotAvailable, "the ENIs are not known")
	n.agent.says(&rpc.StatusReply{Ready: true, DataPathBroken: true, Message: "no routing"})
	wantCode(t, n.status(), CodeLimited, "no routing")
	n.agent.says(&rpc.StatusReply{Ready: true})
	if err := n.status(); err != nil {
		t.Errorf("ready: %v", err)
	}
	if err := rpc.NoteReady(n.agent.socket); err != nil {
		t.Fatal(err)
	}
	n.agent.says(&rpc.StatusReply{Message: "starts"})
	if err := n.status(); err != nil {
		t.Errorf("a successor that starts: %v", err)
	}
	n.agent.stop()
	if err := n.status(); err != nil {
		t.Errorf("away for a moment: %v", err)
	}
	stamp := filepath.Join(filepath.Dir(n.agent.socket), "last-ready")
	if err := os.WriteFile(stamp, []byte("of-another-boot 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	wantCode(t, n.status(), CodeNotAvailable, "another boot")
	// Three kinds of failure and the end of failing; a fourth at last.
	for line, times := range map[string]int{`"level":"INFO","msg":"STATUS"`: 1, `"level":"ERROR","msg":"STATUS failed"`: 4} {
		if got := strings.Count(n.logged(), line); got != times {
			t.Errorf("the log has %s %d times, want %d", line, got, times)
		}
	}
	wantCode(t, n.status(), CodeNotAvailable, "another boot")
	if got := strings.Count(n.logged(), `"level":"ERROR","msg":"STATUS failed"`); got != 4 {
		t.Errorf("the same failure, told again at once: %d errors", got)
	}
}

// TestGCRemovesWhatIsOursAndNotValid: links of others, and pods that are valid, stay.
func TestGCRemovesWhatIsOursAndNotValid(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.attachBranch(7, branchMAC, branchIP)
	const mac8, ip8, ip9 = "06:20:0d:3c:5f:bd", "192.168.47.65", "192.168.47.66"
	n.attachBranch(8, mac8, ip8)
	n.attachBranch(9, "06:20:0d:3c:5f:be", ip9)
	n.agent.set("shop/strict", branchReply(7, branchMAC, branchIP, n.trunk()))
	n.agent.set("shop/standard", standard(branchReply(8, mac8, ip8, n.trunk())))
	n.agent.set("shop/regular", regularReply(regularIP, 2))
	n.agent.set("shop/died", regularReply("192.168.10.78", 2))
	n.agent.set("shop/stays", branchReply(9, "06:20:0d:3c:5f:be", ip9, n.trunk()))
	n.agent.set("shop/stays-too", regularReply("192.168.10.79", 2))
	old := n.wireUpstream(upstreamRegular)
	n.before = n.host.Snapshot(t)
	pods := map[string]*nstest.NS{}
	boxes := map[string]sandbox{}
	add := func(names ...string) {
		for _, p := range names {
			pods[p] = nstest.New(t)
			boxes[p] = newSandbox("sandbox-"+p, "shop/"+p, pods[p])
			n.mustAdd(boxes[p])
		}
	}
	add("stays", "stays-too")
	want := n.host.Snapshot(t)
	add("strict", "standard", "regular", "died")
	// Its namespace died with the host veth: only the rule is left.
	if err := n.host.Handle.LinkDel(n.host.Link(t, datapath.HostVethName("eni", "shop", "died"))); err != nil {
		t.Fatal(err)
	}
	if err := n.gc(boxes["stays"], boxes["stays-too"], boxes["strict"], boxes["standard"], boxes["regular"]); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"strict", "standard", "regular"} {
		if err := n.check("1.1.0", boxes[p]); err != nil {
			t.Errorf("%s is valid: %v", p, err)
		}
	}
	if err := n.gc(boxes["stays"], boxes["stays-too"]); err != nil {
		t.Fatal(err)
	}
	if after := n.host.Snapshot(t); !slices.Equal(want, after) {
		t.Errorf("after GC:\n%s", difference(want, after))
	}
	if last := n.agent.gcs[len(n.agent.gcs)-1]; last.GetNetworkName() != "aws-cni" || len(last.GetValid()) != 2 {
		t.Errorf("the agent was told %v", last)
	}
	// Twice is as good; and a list that is not there is not an empty one.
	if err := n.verb("1.1.0", func(ctx context.Context, _ *libcni.CNIConfig, l *libcni.NetworkConfigList) error {
		return libcni.NewCNIConfigWithCacheDir([]string{n.bin}, t.TempDir(), nil).GCNetworkList(ctx, l, nil)
	}); err != nil {
		t.Fatal(err)
	}
	if after := n.host.Snapshot(t); !slices.Equal(want, after) {
		t.Errorf("after a GC without a list:\n%s", difference(want, after))
	}
	if err := n.gc(); err != nil {
		t.Fatal(err)
	}
	n.wantClean()
	if err := n.check("1.0.0", old); err != nil {
		t.Errorf("upstream's pod: %v", err)
	}
}
