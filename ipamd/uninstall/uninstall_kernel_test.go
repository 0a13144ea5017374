//go:build kernel

package uninstall

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"

	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/install"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// node is a node with our files on it, and an agent that gives out what it is told to.
type node struct {
	nodeagent.UnimplementedNodeAgentServer
	t      *testing.T
	host   *nstest.NS
	opt    Options
	reply  *rpc.AddReply
	server *grpc.Server
	before []string
}

func (n *node) Add(context.Context, *rpc.AddRequest) (*rpc.AddReply, error) { return n.reply, nil }
func (n *node) Del(context.Context, *rpc.DelRequest) (*rpc.DelReply, error) {
	return &rpc.DelReply{}, nil
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, host: nstest.New(t)}
	cable := nstest.New(t)
	n.host.Veth(t, "eth1", cable, "p1")
	n.host.Veth(t, "trunk", cable, "p2")
	n.host.Address(t, "eth1", "192.168.10.10/19")
	n.upstreamsPod()
	n.host.Sysctl(t, "ipv4/tcp_early_demux", "1")
	n.host.Sysctl(t, "ipv4/udp_early_demux", "1")
	n.before = n.host.Snapshot(t)

	bin, conf := t.TempDir(), t.TempDir()
	c, _, err := config.Load(func(k string) (string, bool) {
		v, ok := map[string]string{"HOST_CNI_BIN_PATH": bin, "HOST_CNI_CONFDIR_PATH": conf, "ENABLE_POD_ENI": "true"}[k]
		return v, ok
	})
	if err != nil {
		t.Fatal(err)
	}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	n.opt = Options{Config: c, RunDir: t.TempDir(), SysctlDir: "/proc/sys", Log: log}
	if err := install.Executables(filepath.Dir(os.Getenv("BRANCHLINE_AWS_CNI")), bin, log); err != nil {
		t.Fatal(err)
	}
	if _, err := install.WriteConflist(c); err != nil {
		t.Fatal(err)
	}
	n.host.Sysctl(t, "ipv4/tcp_early_demux", "0")
	n.host.Sysctl(t, "ipv4/udp_early_demux", "0")
	n.host.Do(t, n.setUp)
	l, err := rpc.Listen(filepath.Join(n.opt.RunDir, "ipamd.sock"))
	if err != nil {
		t.Fatal(err)
	}
	n.server = grpc.NewServer(grpc.Creds(nodeagent.NewServerCredentials()))
	nodeagent.RegisterNodeAgentServer(n.server, n)
	go n.server.Serve(l)
	t.Cleanup(n.server.Stop)
	return n
}

// upstreamsPod is wired as upstream does it: it must survive.
func (n *node) upstreamsPod() {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eni0123456789a"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "inpod"
	if err := n.host.Handle.LinkAdd(veth); err != nil {
		n.t.Fatal(err)
	}
	n.host.Up(n.t, "inpod")
	n.host.Up(n.t, attrs.Name)
	_, dst, _ := net.ParseCIDR("192.168.10.99/32")
	n.host.Route(n.t, netlink.Route{LinkIndex: n.host.Link(n.t, attrs.Name).Attrs().Index, Dst: dst, Scope: netlink.SCOPE_LINK})
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Src, rule.Table = unix.AF_INET, 1536, dst, 2
	if err := n.host.Handle.RuleAdd(rule); err != nil {
		n.t.Fatal(err)
	}
}

// setUp does what a running agent has done to the host.
func (n *node) setUp() error {
	k, err := hostnet.NewKernel()
	if err != nil {
		return err
	}
	defer k.Close()
	_, err = k.Reconcile(context.Background(), hostnet.Desired{LocalBehindPods: true, NAT: hostnet.NAT{
		Source: true, NodePort: true, ConnMark: 0x80, VPC: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
	}, External: []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}, Egress: netip.MustParsePrefix("fd00::ac:0/118"), ENIs: []hostnet.ENI{{
		Device: 0, LinkIndex: n.host.Link(n.t, "trunk").Attrs().Index, Primary: netip.MustParseAddr("192.168.10.9"),
	}, {
		Device: 1, LinkIndex: n.host.Link(n.t, "eth1").Attrs().Index,
		Primary: netip.MustParseAddr("192.168.10.10"), Gateway: netip.MustParseAddr("192.168.0.1"),
	}}})
	if err != nil {
		return err
	}
	conn, err := nftables.New(nftables.AsLasting())
	if err != nil {
		return err
	}
	for _, name := range []string{"branchline", "branchline-egress", "somebodys", "branchlines"} {
		conn.AddTable(&nftables.Table{Name: name, Family: nftables.TableFamilyINet})
	}
	return errors.Join(conn.Flush(), conn.CloseLasting())
}

func (n *node) tables() (names []string) {
	n.host.Do(n.t, func() error {
		conn, err := nftables.New(nftables.AsLasting())
		if err != nil {
			return err
		}
		list, err := conn.ListTables()
		for _, table := range list {
			names = append(names, table.Name)
		}
		return errors.Join(err, conn.CloseLasting())
	})
	slices.Sort(names)
	return names
}

// cni runs the executable that is installed.
func (n *node) cni(verb, id string, pod *nstest.NS) {
	n.t.Helper()
	stdin, err := json.Marshal(map[string]any{
		"cniVersion": "1.0.0", "name": "aws-cni", "ipamdSocket": filepath.Join(n.opt.RunDir, "ipamd.sock"), "pluginLogFile": filepath.Join(n.t.TempDir(), "log"),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(n.opt.Config.HostBinDir, "aws-cni"))
	cmd.Stdin = strings.NewReader(string(stdin))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+pod.Path(), "CNI_PATH=/",
		"CNI_ARGS=K8S_POD_NAMESPACE=shop;K8S_POD_NAME="+id)
	var out []byte
	n.host.Do(n.t, func() error { out, err = cmd.CombinedOutput(); return nil })
	if err != nil {
		n.t.Fatalf("%s: %v: %s", verb, err, out)
	}
}

func (n *node) run(force bool) error {
	o := n.opt
	o.Force = force
	return n.host.Try(func() error { return Run(context.Background(), o) })
}

func (n *node) wantNothingOfOurs() {
	n.t.Helper()
	after := n.host.Snapshot(n.t)
	for _, l := range after {
		if !slices.Contains(n.before, l) {
			n.t.Errorf("left on the host: %s", l)
		}
	}
	for _, l := range n.before {
		if !slices.Contains(after, l) {
			n.t.Errorf("gone from the host: %s", l)
		}
	}
	for _, s := range []string{"ipv4/tcp_early_demux", "ipv4/udp_early_demux"} {
		if got := n.host.ReadSysctl(n.t, s); got != "1" {
			n.t.Errorf("%s is %s", s, got)
		}
	}
	if got := n.tables(); !slices.Equal(got, []string{"branchlines", "somebodys"}) {
		n.t.Errorf("nftables has %q", got)
	}
	for name, want := range map[string]bool{
		filepath.Join(n.opt.Config.HostBinDir, "aws-cni"): false, filepath.Join(n.opt.Config.HostBinDir, "egress-cni"): false,
		filepath.Join(n.opt.Config.HostBinDir, "loopback"): true, filepath.Join(n.opt.Config.HostBinDir, "portmap"): true,
		filepath.Join(n.opt.Config.HostConfDir, "10-aws.conflist"): false,
		filepath.Join(n.opt.RunDir, "branchline.json"):             false, filepath.Join(n.opt.RunDir, "cni.lock"): false,
	} {
		if _, err := os.Stat(name); (err == nil) != want {
			n.t.Errorf("%s: %v, want it there: %t", name, err, want)
		}
	}
}

func regular(address string) *rpc.AddReply {
	return &rpc.AddReply{Interface: &rpc.AddReply_Regular{Regular: &rpc.RegularInterface{Address: address, EniId: "eni-1", RouteTable: 2}}}
}

func (n *node) branch(vlan uint32, address string) *rpc.AddReply {
	return &rpc.AddReply{Interface: &rpc.AddReply_Branch{Branch: &rpc.BranchInterface{
		EniId: "eni-2", Mac: "06:20:0d:3c:5f:bc", VlanId: vlan, Address: address, SubnetCidr: "192.168.32.0/19", Gateway: "192.168.32.1",
		TrunkIfindex: uint32(n.host.Link(n.t, "trunk").Attrs().Index),
	}}}
}

func TestUninstallLeavesADrainedNodeAsItWas(t *testing.T) {
	n := newNode(t)
	st, _, err := store.Open(filepath.Join(n.opt.RunDir, "branchline.json"), store.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = st.AssignRegular(store.Key{ContainerID: "web", IfName: "eth0"}, "aws-cni", store.Pod{Namespace: "shop", Name: "web", UID: "u"},
		[]store.Regular{{Address: netip.MustParseAddr("192.168.10.77"), ENIID: "eni-1", Device: 1, RouteTable: 2}})
	if err != nil {
		t.Fatal(err)
	}
	web, db := nstest.New(t), nstest.New(t)
	n.reply = regular("192.168.10.77")
	n.cni("ADD", "web", web)
	n.reply = n.branch(7, "192.168.47.64")
	n.cni("ADD", "db", db)

	if err := n.run(true); !errors.Is(err, ErrAgentRuns) {
		t.Errorf("while an agent runs: %v", err)
	}
	n.server.Stop()
	wired := n.host.Snapshot(t)
	var left *PodsLeft
	if err := n.run(false); !errors.As(err, &left) || len(left.Pods) != 2 || !strings.Contains(err.Error(), "shop/web") || !strings.Contains(err.Error(), "sandbox db/eth0") {
		t.Errorf("with two pods: %v", err)
	}
	if after := n.host.Snapshot(t); !slices.Equal(wired, after) {
		t.Errorf("a refused uninstall changed the host: %q, before %q", after, wired)
	}
	// The drain: one DEL comes, the other pod's namespace dies without one and leaves its VLAN link and rules. An ADD was
	// killed in its middle, too.
	n.cni("DEL", "web", web)
	for _, l := range n.host.Snapshot(t) {
		if name, ok := strings.CutPrefix(l, "link vlan"); ok && strings.Contains(l, " veth ") {
			name, _, _ = strings.Cut(name, " ")
			if err := n.host.Handle.LinkDel(n.host.Link(t, "vlan"+name)); err != nil {
				t.Fatal(err)
			}
		}
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "eni00000000000"
	veth := netlink.NewVeth(attrs)
	veth.PeerName = "unborn"
	if err := n.host.Handle.LinkAdd(veth); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := n.run(false); err != nil {
			t.Fatal(err)
		}
		n.wantNothingOfOurs()
	}
}

func TestUninstallByForceTakesRunningPodsNetwork(t *testing.T) {
	n := newNode(t)
	web, db := nstest.New(t), nstest.New(t)
	n.reply = regular("192.168.10.77")
	n.cni("ADD", "web", web)
	n.reply = n.branch(7, "192.168.47.64")
	n.cni("ADD", "db", db)
	n.server.Stop()
	if err := n.run(true); err != nil {
		t.Fatal(err)
	}
	n.wantNothingOfOurs()
	if web.Link(t, "eth0") != nil || db.Link(t, "eth0") != nil {
		t.Error("a pod has kept its link")
	}
}

func TestUninstallLeavesWhatAnotherPluginHasPutInOurPlace(t *testing.T) {
	n := newNode(t)
	n.server.Stop()
	theirs := filepath.Join(n.opt.Config.HostBinDir, "aws-cni")
	portmap, err := os.ReadFile(filepath.Join(n.opt.Config.HostBinDir, "portmap")) // an executable of another project
	if err == nil {
		err = os.WriteFile(theirs, portmap, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := n.run(false); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{theirs, filepath.Join(n.opt.Config.HostConfDir, "10-aws.conflist")} {
		if _, err := os.Stat(name); err != nil {
			t.Error(err)
		}
	}
}
