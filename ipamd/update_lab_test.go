//go:build lab

package ipamd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// release is the executables of one version.
type release struct{ agent, cni string }

// buildRelease builds them; with an agent that is built already, only the CNI executable.
func buildRelease(t *testing.T, version, agent string) release {
	t.Helper()
	dir := t.TempDir()
	r := release{agent: agent, cni: filepath.Join(dir, "aws-cni")}
	programs := map[string]string{r.cni: "aws-cni"}
	if agent == "" {
		r.agent = filepath.Join(dir, "aws-k8s-agent")
		programs[r.agent] = "ipamd"
	}
	for out, program := range programs {
		must(t, built(t.Context(), out, program, version))
	}
	return r
}

// containerRuntime is what containerd does on the node: it runs the installed executable with the configuration that the agent wrote.
type containerRuntime struct {
	*node
	installed string // the executable
}

// install puts a release's executable in place as the init container does: by rename, whoever runs the old one, and in a
// process of its own. If this one wrote it, an executable that it starts meanwhile would have the file open for a moment, and
// who runs it then is told that it is busy.
func (r *containerRuntime) install(from string) {
	r.t.Helper()
	if out, err := exec.Command("cp", "--", from, r.installed+".new").CombinedOutput(); err != nil {
		r.t.Fatalf("copy %s: %v: %s", from, err, out)
	}
	must(r.t, os.Rename(r.installed+".new", r.installed))
}

// sandbox is one run of a pod.
type sandbox struct {
	pod    *corev1.Pod
	id     string
	netns  *nstest.NS
	result []byte // of its ADD; empty: the runtime has lost it
}

func (r *containerRuntime) run(verb string, s *sandbox) error {
	text, err := os.ReadFile(filepath.Join(r.dir, "10-aws.conflist"))
	if err != nil {
		return err
	}
	var list struct {
		Name, CNIVersion string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return err
	}
	conf := maps.Clone(list.Plugins[0])
	conf["name"], conf["cniVersion"], conf["ipamdSocket"], conf["pluginLogFile"] = list.Name, list.CNIVersion, r.socket(), filepath.Join(r.dir, "plugin.log")
	if verb != "ADD" && len(s.result) > 0 {
		conf["prevResult"] = json.RawMessage(s.result)
	}
	stdin, err := json.Marshal(conf)
	if err != nil {
		return err
	}
	var stdout bytes.Buffer
	cmd := exec.Command(r.installed)
	cmd.Env = []string{
		"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + s.id, "CNI_NETNS=" + s.netns.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(r.installed),
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s;K8S_POD_INFRA_CONTAINER_ID=%s;K8S_POD_UID=%s", s.pod.Name, s.id, s.pod.UID),
	}
	cmd.Stdin, cmd.Stdout = bytes.NewReader(stdin), &stdout
	if err := r.ns.Try(cmd.Start); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s of %s: %w: %s", verb, s.pod.Name, err, stdout.Bytes())
	}
	if verb == "ADD" {
		s.result = stdout.Bytes()
	}
	return nil
}

// address is what the pod's interface really has.
func (s *sandbox) address() (string, error) {
	var found string
	err := s.netns.Try(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		addrs, err := netlink.AddrList(l, netlink.FAMILY_V4)
		if err == nil && len(addrs) == 1 && addrs[0].IP.To4() != nil {
			found = addrs[0].IP.String()
		}
		return err
	})
	return found, err
}

// pace is how long a pod of the churn lives: three at a time and a cool-down of a second need fewer addresses than there are.
const pace = 150 * time.Millisecond

// TestARollingUpdateUnderChurnFailsNoADDAndNoDEL: pods come and go all the while, by the real executable. Each update is what
// the DaemonSet's is: the old agent is told to end, the init container installs the other release's executable, and after a
// while without any agent the other release's starts. One agent is killed in the place of being told. No ADD and no DEL
// fails; ADDs wait for the new agent, DELs don't; no address is with two pods at a time.
func TestARollingUpdateUnderChurnFailsNoADDAndNoDEL(t *testing.T) {
	older, newer := buildRelease(t, "v1.0.0", w.binary), buildRelease(t, "v1.1.0", "")
	role(t, "updated", cniPolicy)
	n := launch(t, "updated", "192.168.7.0/24")
	n.join()
	r := &containerRuntime{node: n, installed: filepath.Join(t.TempDir(), "aws-cni")}
	r.install(older.cni)
	n.binary = older.agent
	n.start()
	n.awaitReady()

	churns := time.Now()
	var serial, adds, waited atomic.Int64
	var longest atomic.Int64
	holders := sync.Map{} // address -> sandbox
	add := func(s *sandbox) error {
		began := time.Now()
		if err := r.run("ADD", s); err != nil {
			return fmt.Errorf("after %v: %w", time.Since(began), err)
		}
		took := time.Since(began)
		if adds.Add(1); took > 500*time.Millisecond {
			waited.Add(1)
		}
		for old := longest.Load(); int64(took) > old && !longest.CompareAndSwap(old, int64(took)); old = longest.Load() {
		}
		addr, err := s.address()
		if err != nil || net.ParseIP(addr) == nil {
			return fmt.Errorf("%s was answered and has address %q: %v", s.id, addr, err)
		}
		if other, held := holders.LoadOrStore(addr, s.id); held {
			return fmt.Errorf("%s has %s, which %s has", s.id, addr, other)
		}
		return nil
	}
	del := func(s *sandbox) error {
		addr, err := s.address()
		if err != nil {
			return err
		}
		holders.Delete(addr) // from here on it may be another's
		return r.run("DEL", s)
	}
	sandboxOf := func(netns *nstest.NS) *sandbox {
		name := fmt.Sprintf("updated-%d", serial.Add(1))
		return &sandbox{pod: n.pod(name, ""), id: "sandbox-of-" + name, netns: netns}
	}

	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		netns := nstest.New(t)
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				s := sandboxOf(netns)
				if err := add(s); err != nil {
					t.Error(err)
					return
				}
				time.Sleep(pace) // the pod's life
				if err := del(s); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	comeAndGo := func() {
		t.Helper()
		was := adds.Load()
		eventually(t, "ten pods come and go", func() bool { return adds.Load() >= was+10 || t.Failed() })
	}
	own := nstest.New(t)
	for i, to := range []release{newer, older} {
		comeAndGo()
		held := sandboxOf(own)
		must(t, add(held))
		n.end(i == 1)
		r.install(to.cni)
		began := time.Now()
		if err := del(held); err != nil {
			t.Errorf("without an agent: %v", err)
		}
		if took := time.Since(began); took > 2*time.Second {
			t.Errorf("without an agent a DEL takes %v", took)
		}
		time.Sleep(time.Second) // the new container starts
		n.binary = to.agent
		n.start()
		t.Logf("ready after %v", n.awaitReady())
	}
	comeAndGo()
	close(stop)
	wg.Wait()
	// An executable and an agent of different releases understand each other, either way.
	for _, c := range []struct{ agent, executable release }{{older, newer}, {newer, older}} {
		if n.binary != c.agent.agent {
			n.end(false)
			n.binary = c.agent.agent
			n.start()
			n.awaitReady()
		}
		r.install(c.executable.cni)
		s := sandboxOf(own)
		must(t, add(s))
		must(t, del(s))
	}
	if log, err := os.ReadFile(filepath.Join(n.dir, "log")); err != nil || bytes.Contains(log, []byte("can't be changed")) {
		t.Errorf("an agent did not know what its predecessor had attached: %v\n%s", err, log)
	}
	t.Logf("%d ADDs in %v, %d of them waited for an agent, the longest took %v", adds.Load(), time.Since(churns).Round(time.Millisecond), waited.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
	if waited.Load() == 0 {
		t.Error("no ADD met an update: nothing was tested")
	}
	holders.Range(func(addr, id any) bool { t.Errorf("%s is held by %s at the end", addr, id); return true })
}

// end ends the agent as the kubelet does, or by kill -9.
func (n *node) end(kill bool) {
	n.t.Helper()
	if kill {
		n.kill()
		return
	}
	began := time.Now()
	must(n.t, n.process.Process.Signal(syscall.SIGTERM))
	if err := n.process.Wait(); err != nil {
		n.t.Errorf("the agent that was told to end: %v", err)
	}
	if took := time.Since(began); took > 5*time.Second {
		n.t.Errorf("it took %v to end", took)
	}
	if _, err := os.Lstat(n.socket()); err == nil {
		n.t.Error("it left its socket")
	}
}
