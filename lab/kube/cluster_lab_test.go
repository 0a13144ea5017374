//go:build lab

package kube

import (
	"context"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/vpc"
)

const (
	controlPlaneENI = "eni-0c000000000000001"
	nodeENI         = "eni-0a000000000000001"
	nodeName        = "ip-192-168-0-20.us-west-2.compute.internal"
)

// conflist gives each pod one of the node's secondary addresses, as a VPC's network plugin does, by plugins that are not
// ours: so this package is tested without what it is there to test.
const conflist = `{"cniVersion": "1.0.0", "name": "test", "plugins": [
 {"type": "ptp", "mtu": 9001, "ipam": {"type": "host-local", "dataDir": "/run/test-ipam",
  "ranges": [[{"subnet": "192.168.0.64/26", "gateway": "192.168.0.65"}]], "routes": [{"dst": "0.0.0.0/0"}]}}]}`

func TestClusterOnNamespaceInstances(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	checkNothingIsLeft(t)
	lab := newTestLab(t, ctx)
	cpMachine := lab.instance(t, ctx, "i-0c000000000000001", controlPlaneENI)
	nodeMachine := lab.instance(t, ctx, "i-0a000000000000001", nodeENI)

	began := time.Now()
	cp, err := StartControlPlane(ctx, cpMachine, ControlPlaneConfig{
		Dir: filepath.Join(lab.dir, "i-0c000000000000001", "kube"), Hyperkube: lab.programs.Hyperkube,
		Address: netip.MustParseAddr("192.168.0.10"), NetNS: cpMachine.NetnsPath(), Log: lab.log,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := cp.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	t.Logf("control plane ready after %s", time.Since(began))
	if err := cp.InstallDNS(ctx); err != nil {
		t.Fatal(err)
	}

	began = time.Now()
	node, err := cp.StartNode(ctx, nodeMachine, NodeConfig{
		Dir: filepath.Join(lab.dir, "i-0a000000000000001", "kube"), Name: nodeName,
		Address: netip.MustParseAddr("192.168.0.20"), Nameserver: netip.MustParseAddr("192.168.0.2"),
		InstanceID: "i-0a000000000000001", InstanceType: "t3.medium", Zone: "us-west-2a", Programs: lab.programs,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("node registered after %s", time.Since(began))
	c := testCluster{ControlPlane: cp, ctx: ctx, logs: lab.dir}

	t.Run("node without network plugin is not ready and looks like one of EKS", func(t *testing.T) {
		c.get(t, "node", nodeName, `{.status.conditions[?(@.type=="Ready")].status}`, "False")
		c.get(t, "node", nodeName, "{.spec.providerID}", "aws:///us-west-2a/i-0a000000000000001")
		c.get(t, "node", nodeName, `{.status.addresses[?(@.type=="InternalIP")].address}`, "192.168.0.20")
		c.get(t, "node", nodeName, `{.metadata.labels.node\.kubernetes\.io/instance-type}`, "t3.medium")
		c.get(t, "node", nodeName, `{.metadata.labels.topology\.kubernetes\.io/zone}`, "us-west-2a")
		c.get(t, "node", nodeName, `{.metadata.labels.topology\.kubernetes\.io/region}`, "us-west-2")
		c.get(t, "node", nodeName, `{.metadata.labels.kubernetes\.io/hostname}`, nodeName)
	})

	t.Run("node is ready once a network plugin is there", func(t *testing.T) {
		lab.installNetwork(t, ctx, nodeMachine)
		c.kubectl(t, "wait", "--for=condition=Ready", "node/"+nodeName, "--timeout=60s")
	})
	if t.Failed() {
		c.explain(t)
	}

	t.Run("pod runs and its logs and exec go through the API server", func(t *testing.T) {
		c.kubectl(t, "run", "probe", "--image=localhost/branchline/welcome:lab", "--image-pull-policy=Never", "--restart=Never",
			"--command", "--", "sh", "-c", `echo "probe at $(ip -4 -o addr show eth0)"; while :; do sleep 1; done`)
		c.kubectl(t, "wait", "--for=condition=Ready", "pod/probe", "--timeout=60s")
		if out := c.kubectl(t, "logs", "probe"); !strings.Contains(out, "192.168.0.") {
			t.Errorf("the pod's log %q does not show its address", out)
		}
		if out := c.kubectl(t, "exec", "probe", "--", "cat", "/etc/resolv.conf"); !strings.Contains(out, "nameserver 10.96.0.10") {
			t.Errorf("the pod's resolver is not the cluster's:\n%s", out)
		}
	})

	t.Run("CoreDNS answers behind its Service", func(t *testing.T) {
		c.kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=90s")
		out := c.kubectl(t, "exec", "probe", "--", "nslookup", "-type=a", "kubernetes.default.svc.cluster.local")
		if !strings.Contains(out, "10.96.0.1") {
			t.Errorf("the look-up of the API server's Service answered:\n%s", out)
		}
		c.kubectl(t, "exec", "probe", "--", "timeout", "5", "nc", "-w", "4", "10.96.0.1", "443", "-e", "true")
	})

	t.Run("killed API server comes back with everything", func(t *testing.T) {
		if err := cp.Kill(ctx, APIServer); err != nil {
			t.Fatal(err)
		}
		if out, err := cp.Kubectl(ctx, "get", "nodes", "--request-timeout=5s"); err == nil {
			t.Errorf("the API server was killed and answers:\n%s", out)
		}
		if err := cp.Start(ctx, APIServer); err != nil {
			t.Fatal(err)
		}
		if err := cp.WaitReady(ctx, APIServer); err != nil {
			t.Fatal(err)
		}
		c.get(t, "pod", "probe", "{.status.phase}", "Running")
		c.kubectl(t, "create", "deployment", "after", "--image=localhost/branchline/welcome:lab", "--replicas=2", "--", "sh", "-c", "sleep 1000")
		c.kubectl(t, "rollout", "status", "deployment/after", "--timeout=60s")
	})

	t.Run("killed kubelet comes back", func(t *testing.T) {
		if err := node.Restart(ctx, Kubelet); err != nil {
			t.Fatal(err)
		}
		c.kubectl(t, "delete", "pod,deployment", "-l", "app=after", "--grace-period=1", "--wait=false")
		c.kubectl(t, "wait", "--for=delete", "pod", "-l", "app=after", "--timeout=90s")
	})
	if t.Failed() {
		c.explain(t)
	}
}

// testLab is a VPC with one subnet and one group that lets everything in.
type testLab struct {
	dir      string
	programs Programs
	agent    string
	cache    *artifacts.Cache
	fabric   *vpc.Fabric
	enis     map[string]vpc.ENI
	log      *slog.Logger
}

func newTestLab(t *testing.T, ctx context.Context) *testLab {
	t.Helper()
	lab := &testLab{dir: t.TempDir(), log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	var err error
	if lab.cache, err = artifacts.Open(); err != nil {
		t.Fatal(err)
	}
	if lab.programs, err = LoadPrograms(ctx, lab.cache, filepath.Join(lab.dir, "images")); err != nil {
		t.Fatal(err)
	}
	if lab.agent, err = instance.Agent(ctx, lab.cache); err != nil {
		t.Fatal(err)
	}
	subnet := vpc.Subnet{ID: "subnet-1", CIDR: netip.MustParsePrefix("192.168.0.0/19")}
	eni := func(id, mac, address string, secondary int) vpc.ENI {
		hw, err := net.ParseMAC(mac)
		if err != nil {
			t.Fatal(err)
		}
		e := vpc.ENI{ID: id, SubnetID: subnet.ID, MAC: hw, Addresses: []netip.Addr{netip.MustParseAddr(address)},
			Groups: []string{"sg-1"}, SourceDestCheck: true, InstanceID: "i-" + id[4:]}
		next := netip.MustParseAddr("192.168.0.66")
		for range secondary {
			e.Addresses = append(e.Addresses, next)
			next = next.Next()
		}
		return e
	}
	lab.enis = map[string]vpc.ENI{
		controlPlaneENI: eni(controlPlaneENI, "06:00:00:00:00:10", "192.168.0.10", 0),
		nodeENI:         eni(nodeENI, "06:00:00:00:00:20", "192.168.0.20", 14),
	}
	anywhere := []vpc.Rule{{ID: "sgr-1", Protocol: -1, CIDR: netip.MustParsePrefix("0.0.0.0/0")}}
	lab.fabric = vpc.New(vpc.Options{Log: lab.log})
	t.Cleanup(func() {
		if err := lab.fabric.Close(); err != nil {
			t.Error(err)
		}
	})
	lab.fabric.Apply(&vpc.Topology{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")}, Subnets: []vpc.Subnet{subnet},
		ENIs:   []vpc.ENI{lab.enis[controlPlaneENI], lab.enis[nodeENI]},
		Groups: []vpc.SecurityGroup{{ID: "sg-1", Ingress: anywhere, Egress: anywhere}},
	})
	return lab
}

// instance starts a namespace instance with its primary ENI.
func (l *testLab) instance(t *testing.T, ctx context.Context, id, eniID string) instance.Instance {
	t.Helper()
	i, err := instance.StartNetns(ctx, instance.Spec{
		ID: id, StateDir: filepath.Join(l.dir, id), Agent: l.agent, Log: l.log,
		Keep: []string{l.cache.Dir(), filepath.Dir(l.programs.Images)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.Close(); err != nil {
			t.Error(err)
		}
	})
	l.attach(t, ctx, i, eniID)
	return i
}

func (l *testLab) attach(t *testing.T, ctx context.Context, i instance.Instance, eniID string) {
	t.Helper()
	e := l.enis[eniID]
	// The link comes up only once the fabric answers on it, so it is attached first and given to the fabric then.
	link, err := i.AttachENI(ctx, ec2.AttachmentSpec{
		ENIID: e.ID, MAC: e.MAC, Address: e.Addresses[0], SubnetCIDR: netip.MustParsePrefix("192.168.0.0/19"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.fabric.AddPort(e.ID, link); err != nil {
		t.Fatal(err)
	}
}

func (l *testLab) installNetwork(t *testing.T, ctx context.Context, m Machine) {
	t.Helper()
	run := func(argv ...string) {
		t.Helper()
		res, err := m.Exec(ctx, instance.Command{Argv: argv})
		if err != nil || res.ExitCode != 0 {
			t.Fatalf("run %v on the node: status %d, %v: %s", argv, res.ExitCode, err, res.Stderr)
		}
	}
	for _, plugin := range []string{"main/ptp", "ipam/host-local"} {
		name := filepath.Base(plugin)
		path, err := l.cache.Go(ctx, name, "github.com/containernetworking/plugins/plugins/"+plugin, "")
		if err != nil {
			t.Fatal(err)
		}
		run("install", "-m", "755", path, filepath.Join(cniBinDir, name))
	}
	run("sh", "-c", `printf %s "$1" >/etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-test.conflist`, "sh", conflist)
}

// testCluster is a control plane whose failures fail a test.
type testCluster struct {
	*ControlPlane
	ctx  context.Context
	logs string
}

func (c testCluster) kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := c.Kubectl(c.ctx, args...)
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return out
}

// get waits until the field of the object has the value.
func (c testCluster) get(t *testing.T, kind, name, jsonpath, want string) {
	t.Helper()
	if out, err := c.Kubectl(c.ctx, "wait", kind+"/"+name, "--for=jsonpath="+jsonpath+"="+want, "--timeout=20s"); err != nil {
		t.Errorf("%s %s: %s is not %q: %v %s", kind, name, jsonpath, want, err, out)
	}
}

// explain logs what a person would look at first.
func (c testCluster) explain(t *testing.T) {
	t.Helper()
	for _, args := range [][]string{{"get", "nodes,pods", "-A", "-o", "wide"}, {"get", "events", "-A"}, {"describe", "pods", "-A"}} {
		out, err := c.Kubectl(context.Background(), args...)
		t.Logf("kubectl %v: %v\n%s", args, err, out)
	}
	logs, err := filepath.Glob(filepath.Join(c.logs, "*", "logs", "*.log"))
	if err != nil {
		t.Log(err)
	}
	for _, file := range logs {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Log(err)
			continue
		}
		lines := strings.Split(string(b), "\n")
		t.Logf("%s:\n%s", file, strings.Join(lines[max(0, len(lines)-15):], "\n"))
	}
}

// checkNothingIsLeft compares, at the test's very end, what the machine had before it.
func checkNothingIsLeft(t *testing.T) {
	t.Helper()
	state := func() []string {
		var all []string
		links, err := net.Interfaces()
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range links {
			all = append(all, "link "+l.Name)
		}
		mounts, err := os.ReadFile("/proc/self/mounts")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			all = append(all, "mount "+strings.Join(strings.Fields(line)[:2], " "))
		}
		for _, pattern := range []string{"/sys/fs/cgroup/i-0[ac]0000*", "/sys/fs/cgroup/*/*i-0[ac]0000*", "/run/containerd/*", "/var/lib/kubelet/*", "/etc/cni/net.d/*", "/opt/cni/bin/*"} {
			found, err := filepath.Glob(pattern)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, found...)
		}
		return all
	}
	before := state()
	t.Cleanup(func() {
		for _, s := range state() {
			if !slices.Contains(before, s) {
				t.Errorf("left behind: %s", s)
			}
		}
	})
}
