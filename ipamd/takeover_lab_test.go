//go:build lab

package ipamd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// initContainer does what the DaemonSet's does: it installs the executable, and with the host's files in view it looks after
// iptables-legacy. What is mounted for that is gone with its process.
func (s *stock) initContainer(executable string) (log string) {
	t := s.t
	t.Helper()
	source, root, sbin := t.TempDir(), t.TempDir(), t.TempDir()
	must(t, os.Symlink(executable, filepath.Join(source, "aws-cni")))
	for _, what := range []string{"save", "restore"} {
		program, err := s.tools.Path("iptables-legacy-" + what)
		must(t, err)
		script := fmt.Sprintf("#!/bin/sh\n%s exec %s \"$@\"\n", strings.Join(xtablesEnv(s.tools, s.dir), " "), program)
		must(t, os.WriteFile(filepath.Join(sbin, "iptables-legacy-"+what), []byte(script), 0o755))
	}
	cmd := exec.CommandContext(t.Context(), "unshare", "--mount", "sh", "-c", `mount --rbind / "$0" && mount --bind "$1" "$0/usr/local/sbin" && shift && exec "$@"`,
		root, sbin, w.binary, "install", "-source", source, "-host-root", root)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOST_CNI_BIN_PATH=" + filepath.Dir(s.installed)}
	s.ns.Do(t, cmd.Start)
	if err := cmd.Wait(); err != nil {
		t.Fatalf("the init container: %v\n%s", err, out.Bytes())
	}
	return out.String()
}

// TestANodeIsTakenOverFromTheStockAgentAndNoPodNotices is the switch as docs/install.md tells of it, with the executables, and
// with packets of the pods that the stock plugin has wired all the while.
func TestANodeIsTakenOverFromTheStockAgentAndNoPodNotices(t *testing.T) {
	for _, iptables := range []string{"nft", "legacy"} {
		t.Run("its rules in iptables-"+iptables, func(t *testing.T) {
			o := newTakeOver(t, iptables)
			stay, leave := watch(t, o.flowsOf(o.stays...)), watch(t, o.flowsOf(o.others()...))
			o.change()
			o.byOurRulesAlone()
			noted := o.noted()
			if !strings.Contains(noted, `"pods":7`) || !strings.Contains(noted, o.checkpoint()) {
				t.Errorf("taken over: %s", noted)
			}
			o.fillUp()

			// The checkpoint is not needed any more.
			must(t, os.Remove(o.checkpoint()))
			o.restart(false)
			o.wantFull()
			leave.end()
			o.oldPodsEnd()

			// One that comes back is not believed: most of what it tells of ended.
			o.writeCheckpoint()
			o.restart(true)
			delete(o.held, o.unlisted.addr)
			if _, address := o.add(); address != o.unlisted.addr {
				t.Errorf("a pod has %s, free is %s alone", address, o.unlisted.addr)
			}
			stay.end()
			for _, p := range o.stays {
				if address, err := p.address(); err != nil || address != p.addr {
					t.Errorf("%s had %s and has %s, %v", p.pod.Name, p.addr, address, err)
				}
				o.ends(p)
			}
			if now := o.noted(); now != noted {
				t.Errorf("the take-over is noted as %s, and was as %s", now, noted)
			}
		})
	}
}

// takeOver is a stock node with pods, and a peer of theirs in the VPC.
type takeOver struct {
	*stock
	peer       *nstest.NS
	server     netip.AddrPort
	executable string
	// The runtime has the results of told's pods, and those of lost's no more; unlisted is not in the checkpoint.
	stays, told, lost []*stockPod
	unlisted          *stockPod
	// Of pods that ended these addresses still have rules; the checkpoint tells of the last one.
	ended []string
	held  map[string]string // who has an address
	added int
}

func newTakeOver(t *testing.T, iptables string) *takeOver {
	t.Helper()
	w.subnets++
	profile := fmt.Sprintf("stock-%d", w.subnets)
	role(t, profile, cniPolicy)
	letIn(t)
	w.plugs.cable = true
	defer func() { w.plugs.cable = false }()
	peer := launchA(t, ec2types.InstanceTypeT3Medium, profile, nextSubnet())
	o := &takeOver{peer: peer.ns, server: netip.AddrPortFrom(peer.cabled(), podPort), executable: filepath.Join(t.TempDir(), "aws-cni"), held: map[string]string{}}
	go tell(peer.listen(o.server.String()))
	must(t, built(t.Context(), o.executable, "aws-cni", ""))

	o.stock = launchStock(t, profile, iptables)
	o.env = []string{"MAX_ENI=2"} // so that what is there is all that pods can get
	o.stays = []*stockPod{o.wire("stays-a", onPrimary), o.wire("stays-b", onSecondary)}
	o.told = []*stockPod{o.wire("told-a", onPrimary), o.wire("told-b", onSecondary)}
	o.lost = []*stockPod{o.wire("lost-a", onPrimary), o.wire("lost-b", onSecondary)}
	for _, p := range slices.Concat(o.stays, o.told, o.lost) {
		o.list(p.id, p.pod.Name, p.addr)
	}
	for _, p := range o.lost {
		p.result = nil
	}
	o.unlisted = o.wire("unlisted", onSecondary)
	for _, p := range o.old() {
		o.held[p.addr] = p.pod.Name
	}
	for _, device := range []int{onPrimary, onSecondary, onSecondary} {
		address := o.take(device)
		o.podRules(address, device)
		o.ended = append(o.ended, address)
	}
	o.list("old-sandbox-of-nobody", "nobody-"+o.id, o.ended[2])
	o.writeCheckpoint()
	return o
}

func (o *takeOver) others() []*stockPod {
	return slices.Concat(o.told, o.lost, []*stockPod{o.unlisted})
}

func (o *takeOver) old() []*stockPod { return slices.Concat(o.stays, o.others()) }

// flows are a pod's: out to the VPC and beyond it, and in from the VPC and from its own node.
func (o *takeOver) flows(p *sandbox, address string) []flow {
	in, name := netip.AddrPortFrom(netip.MustParseAddr(address), podPort), p.pod.Name+" ("+address+")"
	return []flow{
		{name + " to the VPC", p.netns, o.server, address},
		{name + " to the outside", p.netns, outside, o.address.String()},
		{"the VPC to " + name, o.peer, in, o.server.Addr().String()},
		{"the node to " + name, o.ns, in, ""},
	}
}

func (o *takeOver) flowsOf(pods ...*stockPod) (all []flow) {
	for _, p := range pods {
		all = append(all, o.flows(p.sandbox, p.addr)...)
	}
	return all
}

func (o *takeOver) restart(kill bool) {
	o.t.Helper()
	o.end(kill)
	o.start()
	o.awaitReady()
}

// change is the switch; the first agent is killed as soon as it has taken over. What the stock agent has in netfilter is gone
// at its end.
func (o *takeOver) change() {
	t := o.t
	t.Helper()
	o.initContainer(o.executable)
	o.join()
	o.start()
	eventually(t, "the file of allocations", func() bool { _, err := os.Stat(filepath.Join(o.dir, "state.json")); return err == nil })
	o.restart(true)
	if conflist, err := os.ReadFile(filepath.Join(o.dir, "10-aws.conflist")); err != nil || bytes.Contains(conflist, []byte("disableCheck")) {
		t.Errorf("the conflist is the stock one, or gone: %v\n%s", err, conflist)
	}
	if o.iptables == "nft" {
		eventually(t, "the stock rules are gone from nf_tables", func() bool { return len(o.netfilterLeft()) == 0 })
		return
	}
	if len(o.netfilterLeft()) == 0 {
		t.Error("the agent can't have removed what iptables-legacy has")
	}
	log := o.initContainer(o.executable) // of the next rollout
	if left := o.netfilterLeft(); len(left) > 0 {
		t.Errorf("the init container has left %q\n%s", left, log)
	}
}

func (o *takeOver) byOurRulesAlone() {
	o.t.Helper()
	for _, f := range o.flowsOf(o.old()...) {
		if err := f.once(); err != nil {
			o.t.Errorf("by our rules alone: %v", err)
		}
	}
	for _, p := range o.old() {
		if len(p.result) == 0 {
			continue
		}
		if err := o.run("CHECK", p.sandbox); err != nil {
			o.t.Error(err)
		}
	}
	eventually(o.t, "what is left of a pod of the checkpoint that is no more goes", func() bool { return len(o.traces(o.ended[2], "")) == 0 })
}

// add runs a new pod, which reaches all that pods reach and is reached.
func (o *takeOver) add() (n *sandbox, address string) {
	t := o.t
	t.Helper()
	o.added++
	p := o.pod(fmt.Sprintf("new-%d-%s", o.added, o.id), "")
	n = &sandbox{pod: p, id: "sandbox-of-" + p.Name, netns: nstest.New(t)}
	must(t, o.run("ADD", n))
	address, err := n.address()
	must(t, err)
	if other := o.held[address]; other != "" || address == "" {
		t.Errorf("%s has %q, which %s has", p.Name, address, other)
	}
	o.held[address] = p.Name
	n.serve(t)
	flows := o.flows(n, address)
	for _, p := range o.stays {
		flows = append(flows,
			flow{n.pod.Name + " to " + p.pod.Name, n.netns, netip.AddrPortFrom(netip.MustParseAddr(p.addr), podPort), address},
			flow{p.pod.Name + " to " + n.pod.Name, p.netns, netip.AddrPortFrom(netip.MustParseAddr(address), podPort), p.addr})
	}
	for _, f := range flows {
		if err := f.once(); err != nil {
			t.Errorf("a new pod: %v", err)
		}
	}
	return n, address
}

// fillUp gives new pods every address that no old one has.
func (o *takeOver) fillUp() {
	o.t.Helper()
	for len(o.held) < 18 { // nine of each ENI
		o.add()
	}
	for _, address := range o.ended {
		if left := o.traces(address, ""); o.held[address] == "" || len(left) != 1 {
			o.t.Errorf("%s, of a pod that ended, was given to %q, and the kernel has %q; want the new pod's route alone", address, o.held[address], left)
		}
	}
	o.wantFull()
}

// wantFull wants no address to be left.
func (o *takeOver) wantFull() {
	o.t.Helper()
	o.added++
	p := o.pod(fmt.Sprintf("new-%d-%s", o.added, o.id), "")
	late := &sandbox{pod: p, id: "sandbox-of-" + p.Name, netns: nstest.New(o.t)}
	if err := o.run("ADD", late); err == nil || !strings.Contains(err.Error(), "m5.large") {
		o.t.Errorf("with no address left an ADD answers %v", err)
	}
}

// ends has a pod end, which leaves nothing.
func (o *takeOver) ends(p *stockPod) {
	o.t.Helper()
	must(o.t, o.run("DEL", p.sandbox))
	if left := o.traces(p.addr, p.veth); len(left) > 0 {
		o.t.Errorf("DEL of %s has left %q", p.pod.Name, left)
	}
	must(o.t, w.admin.Delete(o.t.Context(), p.pod, client.GracePeriodSeconds(0)))
	p.netns.Close()
}

// oldPodsEnd ends those that don't stay, one while there is no agent, and has new ones get their addresses: there are no others.
func (o *takeOver) oldPodsEnd() {
	t := o.t
	t.Helper()
	for i, p := range slices.Concat(o.told, o.lost) {
		began, unheard := time.Now(), i == 0
		if unheard {
			o.kill()
		}
		o.ends(p)
		if unheard {
			o.start()
			o.awaitReady()
		}
		delete(o.held, p.addr)
		if _, address := o.add(); address != p.addr {
			t.Errorf("a pod has %s after the end of %s, which had %s", address, p.pod.Name, p.addr)
		}
		if rested := time.Since(began); rested < time.Second { // the cool-down, here
			t.Errorf("%s was given %v after the DEL of %s began", p.addr, rested, p.pod.Name)
		}
	}
	o.ends(o.unlisted)
}

// noted is what the agent's file says of the take-over.
func (o *takeOver) noted() string {
	o.t.Helper()
	b, err := os.ReadFile(filepath.Join(o.dir, "state.json"))
	must(o.t, err)
	var file struct {
		State struct{ TakenOver json.RawMessage }
	}
	must(o.t, json.Unmarshal(b, &file))
	return string(file.State.TakenOver)
}
