//go:build kernel

package eni

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/vishvananda/netlink"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

func TestFailedADDLeavesNothingAndTheAgentKnows(t *testing.T) {
	foreign := func(ns *nstest.NS, name string) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		veth := netlink.NewVeth(attrs)
		veth.PeerName = "somebodys"
		if err := ns.Handle.LinkAdd(veth); err != nil {
			t.Fatal(err)
		}
		ns.Up(t, name)
	}
	for _, tc := range []struct {
		name    string
		breakIt func(*node, *nstest.NS)
		reply   func(*node) *rpc.AddReply
		code    uint
		names   []string
		told    bool
	}{
		{name: "eth0 exists in the pod", code: CodeConflict, names: []string{"eth0", "already"}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { foreign(pod, "eth0") }},
		{name: "a further interface exists in the pod", code: CodeConflict, names: []string{"mNicIf2", "already"}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { foreign(pod, "mNicIf2") },
			reply: func(n *node) *rpc.AddReply {
				return several(regularReply(regularIP, 2), "192.168.64.77", "192.168.96.77")
			}},
		{name: "a further host veth's name is taken by another's link", code: CodeConflict, names: []string{"eni" + severalHashes[1]}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { foreign(n.host, "eni"+severalHashes[1]) },
			reply: func(n *node) *rpc.AddReply {
				return several(regularReply(regularIP, 2), "192.168.64.77", "192.168.96.77")
			}},
		{name: "host veth's name is taken by another's link", code: CodeConflict, names: []string{"vlan" + goldenHash}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { foreign(n.host, "vlan"+goldenHash) }},
		{name: "VLAN link's name is taken by another's link", code: CodeConflict, names: []string{"vlan.eth.7"}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { foreign(n.host, "vlan.eth.7") }},
		{name: "trunk is down", code: CodeWiring, names: []string{"vlan.eth.7", "trunk"}, told: true,
			breakIt: func(n *node, pod *nstest.NS) { n.host.Handle.LinkSetDown(n.host.Link(t, "trunk")) }},
		{name: "trunk is not there", code: CodeWiring, names: []string{"trunk", "9999"}, told: true,
			reply: func(n *node) *rpc.AddReply { return branchReply(7, branchMAC, branchIP, 9999) }},
		{name: "invalid VLAN id from the agent", code: CodeBadReply, names: []string{"vlan id 0"}, told: true,
			reply: func(n *node) *rpc.AddReply { return branchReply(0, branchMAC, branchIP, n.trunk()) }},
		{name: "invalid MAC from the agent", code: CodeBadReply, names: []string{"mac", "nonsense"}, told: true,
			reply: func(n *node) *rpc.AddReply { return branchReply(7, "nonsense", branchIP, n.trunk()) }},
		{name: "invalid address from the agent", code: CodeBadReply, names: []string{"address", "10.0.0.300"}, told: true,
			reply: func(n *node) *rpc.AddReply { return regularReply("10.0.0.300", 254) }},
		{name: "address outside the subnet from the agent", code: CodeBadReply, names: []string{"10.9.9.9", "192.168.32.0/19"}, told: true,
			reply: func(n *node) *rpc.AddReply { return branchReply(7, branchMAC, "10.9.9.9", n.trunk()) }},
		{name: "no trunk from the agent", code: CodeBadReply, names: []string{"trunk ifindex 0"}, told: true,
			reply: func(n *node) *rpc.AddReply { return branchReply(7, branchMAC, branchIP, 0) }},
		{name: "nothing from the agent", code: CodeBadReply, names: []string{"neither a regular nor a branch interface"}, told: true,
			reply: func(n *node) *rpc.AddReply { return &rpc.AddReply{Version: "0.0.0"} }},
		{name: "refused by the agent", code: CodeRefused, names: []string{"delete the pod"},
			breakIt: func(n *node, pod *nstest.NS) {
				n.agent.refuse(goldenPod, status.Error(codes.FailedPrecondition, "no annotation: delete the pod"))
			}},
		{name: "unknown to the agent", code: types.ErrUnknownContainer, names: []string{"not known"},
			reply: func(n *node) *rpc.AddReply { return nil }},
		{name: "no address left", code: types.ErrTryAgainLater, names: []string{"subnet"},
			breakIt: func(n *node, pod *nstest.NS) {
				n.agent.refuse(goldenPod, status.Error(codes.ResourceExhausted, "subnet is full"))
			}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			reply := branchReply(7, branchMAC, branchIP, n.trunk())
			if tc.reply != nil {
				reply = tc.reply(n)
			}
			if reply != nil {
				n.agent.set(goldenPod, reply)
			}
			pod := nstest.New(t)
			if tc.breakIt != nil {
				tc.breakIt(n, pod)
			}
			n.before = n.host.Snapshot(t)
			podBefore := pod.Snapshot(t)
			s := newSandbox("sandbox-1", goldenPod, pod)
			_, err := n.add("1.0.0", s)
			wantCode(t, err, tc.code, append(tc.names, goldenPod)...)
			n.wantClean()
			if d := difference(podBefore, pod.Snapshot(t)); d != "" {
				t.Errorf("left behind in the pod:\n%s", d)
			}
			if n.agent.holds() != 0 {
				t.Error("the agent still holds the sandbox")
			}
			if del := n.agent.lastDel(); tc.told != (del != nil && del.GetAddFailed() && del.GetReason() != "") {
				t.Errorf("the agent was told %v", del)
			}
			n.mustDel(s)
			n.wantClean()
		})
	}
}

// What is left holds the address: the agent finds out by itself when it is gone.
func TestTheAgentIsNotToldOfAnUndoThatFailed(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	client, err := rpc.Dial(n.agent.socket)
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	o := &operation{args: &skel.CmdArgs{ContainerID: "sandbox-1", IfName: "eth0"}}
	o.undone(client, nil, "no result", errors.New("delete link vlan"+goldenHash+": device or resource busy"))
	if del := n.agent.lastDel(); del != nil || !slices.Contains(o.attrs, any("undoError")) {
		t.Errorf("told %v, noted %v", del, o.attrs)
	}
	o.undone(client, nil, "no result", nil)
	if del := n.agent.lastDel(); !del.GetAddFailed() || del.GetReason() != "no result" {
		t.Errorf("told %v", del)
	}
}

func TestADDWaitsForARestartingAgent(t *testing.T) {
	n := newNode(t)
	n.agent.set(goldenPod, regularReply(regularIP, 254))
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	served := make(chan error, 1)
	timer := time.AfterFunc(1500*time.Millisecond, func() { served <- n.agent.serve() })
	defer timer.Stop()
	n.mustAdd(s)
	if err := <-served; err != nil {
		t.Fatal(err)
	}
	n.mustDel(s)
	n.wantClean()
}

func TestADDOutlivesAnAgentThatDiesWithItsQuestion(t *testing.T) {
	n := newNode(t)
	n.agent.set(goldenPod, regularReply(regularIP, 254))
	asked := make(chan struct{})
	n.agent.hang = asked
	n.agent.start(t)
	restarted := make(chan error, 1)
	go func() {
		<-asked
		n.agent.stop()
		n.agent.mu.Lock()
		n.agent.hang = nil
		n.agent.mu.Unlock()
		restarted <- n.agent.serve()
	}()
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	if err := <-restarted; err != nil {
		t.Fatal(err)
	}
	n.mustDel(s)
	n.wantClean()
}

func TestRepeatedADDOfASandboxReplacesItsWiring(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.attachBranch(7, branchMAC, branchIP)
	n.agent.set(goldenPod, branchReply(7, branchMAC, branchIP, n.trunk()))
	pod := nstest.New(t)
	s := newSandbox("sandbox-1", goldenPod, pod)
	n.mustAdd(s)
	once := n.host.Snapshot(t)
	n.mustAdd(s)
	if d := difference(once, n.host.Snapshot(t)); d != "" {
		t.Errorf("the second ADD changed:\n%s", d)
	}
	if err := talk(t, n.vpc, "192.168.0.1", pod, branchIP); err != nil {
		t.Error(err)
	}
	second := s
	second.ifName = "eth1"
	_, err := n.add("1.0.0", second)
	wantCode(t, err, CodeConflict, "eth0")
	if d := difference(once, n.host.Snapshot(t)); d != "" {
		t.Errorf("the refused second interface changed:\n%s", d)
	}
	n.mustDel(s)
	n.wantClean()
}

func TestP4DELNeedsNeitherAgentNorNetnsNorResult(t *testing.T) {
	for _, kind := range []string{"branch", "regular"} {
		n := newNode(t)
		n.agent.start(t)
		config := maps.Clone(n.config)
		for name, harm := range map[string]func(*node, *sandbox, *nstest.NS){
			"agent dead":            func(n *node, s *sandbox, _ *nstest.NS) { n.agent.stop() },
			"empty netns":           func(n *node, s *sandbox, _ *nstest.NS) { s.netns = "" },
			"stale netns":           func(n *node, s *sandbox, _ *nstest.NS) { s.netns = "/proc/self/fd/9999" },
			"result lost":           func(n *node, s *sandbox, _ *nstest.NS) { n.forget() },
			"result lost, no netns": func(n *node, s *sandbox, _ *nstest.NS) { n.forget(); s.netns = "" },
			"conflist broken":       func(n *node, s *sandbox, _ *nstest.NS) { n.config["mtu"] = "a lot"; n.config["vethPrefix"] = "eth" },
			"prefix changed":        func(n *node, s *sandbox, _ *nstest.NS) { n.config["vethPrefix"] = "pod" },
			"no pod in CNI_ARGS":    func(n *node, s *sandbox, _ *nstest.NS) { s.args = "none" },
			"result lost, no pod": func(n *node, s *sandbox, _ *nstest.NS) {
				if kind == "branch" { // the VLAN link tells; a veth can't be found without the pod's name, so it goes with its netns
					n.forget()
					s.args = "none"
					n.host.Handle.LinkDel(n.host.Link(n.t, "vlan"+goldenHash))
					rule := netlink.NewRule()
					rule.Family, rule.Priority, rule.IifName = netlink.FAMILY_V4, 10, "vlan"+goldenHash
					n.host.Handle.RuleDel(rule)
				}
			},
			"veth gone with its netns": func(n *node, s *sandbox, _ *nstest.NS) {
				n.host.Handle.LinkDel(n.host.Link(n.t, map[string]string{"branch": "vlan", "regular": "eni"}[kind]+goldenHash))
			},
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				pod := nstest.New(t)
				s := newSandbox("sandbox-1", goldenPod, pod)
				reply := regularReply(regularIP, 2)
				if kind == "branch" {
					reply = branchReply(7, branchMAC, branchIP, n.trunk())
				}
				n.agent.set(goldenPod, reply)
				outer := n.t
				n.t = t
				defer func() { n.t = outer }()
				n.mustAdd(s)
				harm(n, &s, pod)
				n.mustDel(s)
				n.wantClean()
				n.mustDel(s)
				n.wantClean()
				n.config = maps.Clone(config)
				n.agent.stop()
				n.agent.start(t)
			})
		}
	}
}

// TestP1LateDELOfAnOldSandboxTouchesNothingNew is pain P1.
func TestP1LateDELOfAnOldSandboxTouchesNothingNew(t *testing.T) {
	branch := func(n *node) *rpc.AddReply { return branchReply(7, branchMAC, branchIP, n.trunk()) }
	for _, tc := range []struct {
		name               string
		oldPod, newPod     string
		oldReply, newReply func(*node) *rpc.AddReply
	}{
		{name: "same VLAN id, another pod", oldPod: "shop/old", newPod: "shop/new", oldReply: branch, newReply: branch},
		{name: "same pod, same VLAN id", oldPod: goldenPod, newPod: goldenPod, oldReply: branch, newReply: branch},
		{name: "same pod, another VLAN id", oldPod: goldenPod, newPod: goldenPod, newReply: branch,
			oldReply: func(n *node) *rpc.AddReply { return branchReply(5, "06:20:0d:3c:5f:05", "192.168.47.5", n.trunk()) }},
		{name: "same address, another pod", oldPod: "shop/old", newPod: "shop/new",
			oldReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) },
			newReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) }},
		{name: "same address, on a secondary ENI once and on the primary now", oldPod: "shop/old", newPod: "shop/new",
			oldReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) },
			newReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 254) }},
		{name: "same pod, same address", oldPod: goldenPod, newPod: goldenPod,
			oldReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) },
			newReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) }},
		{name: "same pod, regular once and branch now", oldPod: goldenPod, newPod: goldenPod, newReply: branch,
			oldReply: func(n *node) *rpc.AddReply { return regularReply(regularIP, 2) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			n.attachBranch(7, branchMAC, branchIP)
			newPod, oldPod := nstest.New(t), nstest.New(t)
			newBox, oldBox := newSandbox("sandbox-new", tc.newPod, newPod), newSandbox("sandbox-old", tc.oldPod, oldPod)
			// What the new sandbox alone looks like.
			n.agent.set(tc.newPod, tc.newReply(n))
			n.mustAdd(newBox)
			alone := n.host.Snapshot(t)
			n.mustDel(newBox)
			n.wantClean()
			for _, lost := range []bool{false, true} {
				n.agent.set(tc.oldPod, tc.oldReply(n))
				n.mustAdd(oldBox)
				again := n.keepCache()
				n.agent.set(tc.newPod, tc.newReply(n))
				n.mustAdd(newBox)
				// The runtime's cache is per container id: the copy has the old sandbox's result.
				current := n.cache
				again()
				if lost {
					n.forget()
				}
				for range 2 {
					restore := n.keepCache()
					n.mustDel(oldBox)
					restore()
				}
				n.cache = current
				if d := difference(alone, n.host.Snapshot(t)); d != "" {
					t.Errorf("result lost %t: after the old sandbox's DEL the new one's wiring differs from a fresh one:\n%s", lost, d)
				}
				if tc.newReply(n).GetBranch() != nil {
					if err := talk(t, n.vpc, "192.168.0.1", newPod, branchIP); err != nil {
						t.Error(err)
					}
				}
				n.mustDel(newBox)
				n.wantClean()
			}
		})
	}
}

func TestEachOperationIsOneLineOfTheLog(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.agent.set(goldenPod, regularReply(regularIP, 2))
	s := newSandbox("sandbox-1", goldenPod, nstest.New(t))
	n.mustAdd(s)
	n.mustDel(s)
	log, err := os.ReadFile(n.config["pluginLogFile"].(string))
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	if len(lines) != 2 {
		t.Fatalf("want two lines, got\n%s", log)
	}
	for _, l := range lines {
		for _, want := range []string{goldenPod, "sandbox-1", regularIP, "duration"} {
			if !strings.Contains(l, want) {
				t.Errorf("%q is not in %s", want, l)
			}
		}
	}
	// A log that can't be opened stops nobody.
	n.config["pluginLogFile"] = filepath.Join("/proc/nowhere", "plugin.log")
	n.mustAdd(s)
	n.mustDel(s)
	n.wantClean()
}
