//go:build kernel

package eni

import (
	"context"
	"encoding/json"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// chainFamily is a cluster of one family, whose pods reach the other by the chained egress-cni.
type chainFamily struct {
	name            string
	own             string // the pod's address
	node            string // the node's, where host ports are
	network         string
	egress          string // the range that egress-cni gives addresses of
	egressLink      string // in the pod
	elsewhere, seen string // an address of the other family, and whom it sees
	further         []string
}

var chainFamilies = []chainFamily{
	{"IPv4 cluster", regularIP, nodeAddress, "tcp4", "fd00::ac:00/118", "v6if0", vpcAddress6, nodeAddress6, nil},
	{"IPv6 cluster, a pod with several interfaces", regularIP6, nodeAddress6, "tcp6", "169.254.172.0/22", "v4if0", "192.168.0.1", nodeAddress, []string{"2001:db8:64::77", "2001:db8:96::77"}},
}

// Rates in bits per second, and the burst that containerd gives with them.
const (
	intoPod, outOfPod = 10_000_000, 4_000_000
	burst             = math.MaxUint32
)

// wholeChain is everything that ships, one behind the other, as the runtime hands it on at 1.1.0.
type wholeChain struct {
	n        *node
	family   chainFamily
	list     *libcni.NetworkConfigList
	rc       *libcni.RuntimeConf
	pod      *nstest.NS
	dataDirs map[string]string
}

func newWholeChain(t *testing.T, f chainFamily) *wholeChain {
	t.Helper()
	c := &wholeChain{n: newNode(t), family: f, pod: nstest.New(t), dataDirs: map[string]string{"egress": t.TempDir(), "tuning": t.TempDir()}}
	c.n.agent.start(t)
	c.n.agent.says(&rpc.StatusReply{Ready: true})
	c.n.agent.set(goldenPod, several(regularReply(f.own, 0), f.further...))
	text, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "cniVersions": []string{"0.4.0", "1.0.0", "1.1.0"}, "name": "aws-cni",
		"plugins": []any{
			c.n.config,
			map[string]any{
				"type": "egress-cni", "mtu": "9001", "enabled": "true", "randomizeSNAT": "prng",
				"pluginLogFile": filepath.Join(t.TempDir(), "egress.log"), "pluginLogLevel": "debug",
				"ipam": map[string]any{"type": "host-local", "dataDir": c.dataDirs["egress"], "ranges": [][]any{{map[string]string{"subnet": f.egress}}}},
			},
			map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true},
			map[string]any{"type": "bandwidth", "capabilities": map[string]bool{"bandwidth": true}},
			map[string]any{"type": "tuning", "dataDir": c.dataDirs["tuning"], "sysctl": map[string]string{"net.core.somaxconn": "517"}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if c.list, err = libcni.ConfListFromBytes(text); err != nil {
		t.Fatal(err)
	}
	if c.list.CNIVersion != "1.1.0" {
		t.Fatalf("a runtime that knows cniVersions takes %s", c.list.CNIVersion)
	}
	c.rc = newSandbox("sandbox-1", goldenPod, c.pod).runtimeConf()
	c.rc.CapabilityArgs = map[string]any{
		"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}},
		"bandwidth":    map[string]any{"ingressRate": intoPod, "ingressBurst": burst, "egressRate": outOfPod, "egressBurst": burst},
	}
	return c
}

// run runs f in the host's namespace, where the runtime is.
func (c *wholeChain) run(what string, f func(context.Context, *libcni.CNIConfig) error) {
	c.n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := c.n.host.Try(func() error { return f(ctx, c.n.cni()) }); err != nil {
		c.n.t.Errorf("%s: %v", what, err)
	}
}

func (c *wholeChain) add() *current.Result {
	c.n.t.Helper()
	var out *current.Result
	c.run("ADD", func(ctx context.Context, cni *libcni.CNIConfig) error {
		res, err := cni.AddNetworkList(ctx, c.list, c.rc)
		if err == nil {
			out, err = current.GetResult(res)
		}
		return err
	})
	if out == nil {
		c.n.t.FailNow()
	}
	return out
}

func (c *wholeChain) gc(valid ...types.GCAttachment) {
	c.n.t.Helper()
	c.run("GC", func(ctx context.Context, cni *libcni.CNIConfig) error {
		return cni.GCNetworkList(ctx, c.list, &libcni.GCArgs{ValidAttachments: valid})
	})
}

// rate is the limit of the token bucket at the link's root, in bits per second.
func (c *wholeChain) rate(link string) uint64 {
	c.n.t.Helper()
	qdiscs, err := c.n.host.Handle.QdiscList(c.n.host.Link(c.n.t, link))
	if err != nil {
		c.n.t.Fatal(err)
	}
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok && q.Attrs().Parent == netlink.HANDLE_ROOT {
			return tbf.Rate * 8
		}
	}
	c.n.t.Errorf("no token bucket at the root of %s: %v", link, qdiscs)
	return 0
}

// wantWorks looks at what each plugin of the chain is there for.
func (c *wholeChain) wantWorks(r *current.Result) {
	c.n.t.Helper()
	ifb := ""
	for _, i := range r.Interfaces {
		if l, err := c.n.host.Handle.LinkByName(i.Name); i.Sandbox == "" && err == nil && l.Type() == "ifb" {
			ifb = i.Name
		}
	}
	if ifb == "" {
		c.n.t.Fatalf("the result names no ifb: %v", r.Interfaces)
	}
	if into, out := c.rate("eni"+goldenHash), c.rate(ifb); into != intoPod || out != outOfPod {
		c.n.t.Errorf("%d bit/s into the pod by the host veth, %d out of it by the ifb; want %d, %d", into, out, intoPod, outOfPod)
	}
	if got := c.pod.ReadSysctl(c.n.t, "core/somaxconn"); got != "517" {
		c.n.t.Errorf("net.core.somaxconn in the pod is %s", got)
	}
	c.pod.Link(c.n.t, c.family.egressLink)
	if got := reserved(c.n.t, c.dataDirs["egress"]); len(got) != 1 {
		c.n.t.Errorf("host-local has given %v", got)
	}
	for where, ns := range map[string]*nstest.NS{"elsewhere": c.n.vpc, "the node": c.n.host} {
		if got, err := hear(ns, net.JoinHostPort(c.family.node, "8080")); err != nil || got != "hello" {
			c.n.t.Errorf("host port from %s: %q, %v", where, got, err)
		}
	}
	if got := seenAs(c.n.t, c.n.vpc, c.family.elsewhere, c.pod); got != c.family.seen {
		c.n.t.Errorf("%s sees the pod as %s, want the node's %s", c.family.elsewhere, got, c.family.seen)
	}
}

// seenAs is the address that a server sees a client come from.
func seenAs(t *testing.T, server *nstest.NS, address string, client *nstest.NS) string {
	t.Helper()
	var l net.Listener
	server.Do(t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	})
	defer l.Close()
	seen := make(chan string, 1)
	go func() {
		defer close(seen)
		if conn, err := l.Accept(); err == nil {
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			seen <- host
			conn.Close()
		}
	}()
	if _, err := hear(client, l.Addr().String()); err != nil {
		t.Error(err)
		l.Close()
	}
	return <-seen
}

// reserved are those that host-local keeps in its folder for our network.
func reserved(t *testing.T, dir string) (out []string) {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "aws-cni", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if net.ParseIP(filepath.Base(f)) != nil {
			out = append(out, filepath.Base(f))
		}
	}
	return out
}

// wantNothing is for after the pod: no plugin of the chain has left anything of it.
func (c *wholeChain) wantNothing() {
	c.n.t.Helper()
	c.n.wantClean()
	if c.n.agent.holds() != 0 {
		c.n.t.Error("the agent still holds the sandbox")
	}
	if got := reserved(c.n.t, c.dataDirs["egress"]); len(got) > 0 {
		c.n.t.Errorf("host-local still has %v", got)
	}
	for what, dir := range map[string]string{"tuning": c.dataDirs["tuning"], "the runtime's results": filepath.Join(c.n.cache, "results")} {
		if files, err := os.ReadDir(dir); err != nil || len(files) > 0 {
			c.n.t.Errorf("%s: %v, %v", what, files, err)
		}
	}
	var rules []byte
	c.n.host.Do(c.n.t, func() (err error) {
		rules, err = exec.CommandContext(context.Background(), "nft", "list", "ruleset").CombinedOutput()
		return err
	})
	for _, of := range []string{c.family.own, "8080", c.rc.ContainerID} {
		if strings.Contains(string(rules), of) {
			c.n.t.Errorf("the packet filter still knows %s:\n%s", of, rules)
		}
	}
}

// TestTheWholeChainPassesEveryVerb: ours, egress by the other family with host-local, host ports, bandwidth and a sysctl,
// at 1.1.0 by the library that runtimes call us with.
func TestTheWholeChainPassesEveryVerb(t *testing.T) {
	for _, f := range chainFamilies {
		t.Run(f.name, func(t *testing.T) {
			c := newWholeChain(t, f)
			c.run("STATUS", func(ctx context.Context, cni *libcni.CNIConfig) error { return cni.GetStatusNetworkList(ctx, c.list) })
			r := c.add()
			c.gc(types.GCAttachment{ContainerID: c.rc.ContainerID, IfName: c.rc.IfName})
			c.run("CHECK after a GC that has the pod for valid", func(ctx context.Context, cni *libcni.CNIConfig) error {
				return cni.CheckNetworkList(ctx, c.list, c.rc)
			})
			sayHello(t, c.pod, f.network, 80, "hello")
			c.wantWorks(r)
			c.run("DEL", func(ctx context.Context, cni *libcni.CNIConfig) error { return cni.DelNetworkList(ctx, c.list, c.rc) })
			c.wantNothing()
		})
	}
}

// TestGCStandsForTheWholeChainsDEL: a sandbox that the runtime has forgotten to tear down, but not its result.
func TestGCStandsForTheWholeChainsDEL(t *testing.T) {
	c := newWholeChain(t, chainFamilies[0])
	c.add()
	c.gc()
	c.wantNothing()
}

// TestLoopbackPassesEveryVerb: what containerd 1.6 runs in each sandbox at 0.3.1, beside the pod's network.
func TestLoopbackPassesEveryVerb(t *testing.T) {
	n := newNode(t)
	pod := nstest.New(t)
	if err := pod.Handle.LinkSetDown(pod.Link(t, "lo")); err != nil {
		t.Fatal(err)
	}
	for _, version := range []string{"0.3.1", "1.1.0"} {
		list, err := libcni.ConfListFromBytes([]byte(`{"cniVersion": "` + version + `", "name": "cni-loopback", "plugins": [{"type": "loopback"}]}`))
		if err != nil {
			t.Fatal(err)
		}
		rc := &libcni.RuntimeConf{ContainerID: "sandbox-1", NetNS: pod.Path(), IfName: "lo"}
		up := func() bool { return pod.Link(t, "lo").Attrs().Flags&net.FlagUp != 0 }
		n.host.Do(t, func() error {
			_, err := n.cni().AddNetworkList(t.Context(), list, rc)
			return err
		})
		if !up() {
			t.Errorf("%s: lo is down after ADD", version)
		}
		if version == "1.1.0" {
			n.host.Do(t, func() error { return n.cni().CheckNetworkList(t.Context(), list, rc) })
			n.host.Do(t, func() error { return n.cni().GetStatusNetworkList(t.Context(), list) })
		}
		n.host.Do(t, func() error { return n.cni().DelNetworkList(t.Context(), list, rc) })
		if up() {
			t.Errorf("%s: lo is up after DEL", version)
		}
	}
}
