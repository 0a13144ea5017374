//go:build kernel

package eni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
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
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// executable is what the runtime's library runs: the CNI executable as it ships, under its name.
func executable(t *testing.T) string {
	t.Helper()
	path := os.Getenv("BRANCHLINE_AWS_CNI")
	if filepath.Base(path) != "aws-cni" {
		t.Fatalf("BRANCHLINE_AWS_CNI=%q is not the path of aws-cni: run these tests by go run ./test/kernel ./plugins/...", path)
	}
	return path
}

// node is a worker node with its primary ENI and its trunk, both cabled to a router that stands for the VPC. It is set
// up as the agent sets up a node in strict mode.
type node struct {
	t      *testing.T
	host   *nstest.NS
	vpc    *nstest.NS
	agent  *fakeAgent
	bin    string
	config map[string]any
	before []string
	cache  string
}

const (
	nodeAddress  = "192.168.10.10"
	nodeAddress6 = "2001:db8::10"
	vpcAddress6  = "2001:db8::1"
)

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, host: nstest.New(t), vpc: nstest.New(t), agent: newFakeAgent(t), bin: filepath.Dir(executable(t)), cache: t.TempDir()}
	n.host.Veth(t, "eth0", n.vpc, "p0")
	n.host.Veth(t, "trunk", n.vpc, "fabric")
	n.host.Address(t, "eth0", nodeAddress+"/19")
	n.vpc.Address(t, "p0", "192.168.0.1/19")
	n.host.Route(t, netlink.Route{Dst: cidr("0.0.0.0/0"), Gw: net.ParseIP("192.168.0.1")})
	for _, ns := range []*nstest.NS{n.host, n.vpc} {
		ns.Sysctl(t, "ipv4/ip_forward", "1")
		ns.Sysctl(t, "ipv4/tcp_early_demux", "0")
	}
	// The strictest node that can be met: what the executable sets per link must win over it.
	n.host.Sysctl(t, "ipv4/conf/all/rp_filter", "1")
	n.host.Sysctl(t, "ipv4/conf/default/rp_filter", "1")
	n.host.Sysctl(t, "ipv4/conf/eth0/rp_filter", "2")
	n.vpc.Sysctl(t, "ipv4/conf/all/rp_filter", "0")
	for _, l := range []string{"p0", "fabric"} {
		n.vpc.Sysctl(t, "ipv4/conf/"+l+"/rp_filter", "0")
	}
	n.addIPv6()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		for _, r := range []struct{ prio, table int }{{20, 255}, {512, 511}} {
			rule := netlink.NewRule()
			rule.Family, rule.Priority, rule.Table = family, r.prio, r.table
			if err := n.host.Handle.RuleAdd(rule); err != nil {
				t.Fatal(err)
			}
		}
		local := netlink.NewRule()
		local.Family, local.Priority, local.Table = family, 0, 255
		if err := n.host.Handle.RuleDel(local); err != nil {
			t.Fatal(err)
		}
	}
	n.config = map[string]any{
		"type": "aws-cni", "vethPrefix": "eni", "mtu": "9001", "podSGEnforcingMode": "strict",
		"pluginLogFile": filepath.Join(t.TempDir(), "plugin.log"), "pluginLogLevel": "debug", "ipamdSocket": n.agent.socket,
	}
	n.before = n.host.Snapshot(t)
	return n
}

// addIPv6 gives the node IPv6 as well, and what the agent sets up for it: what the VPC's router says to a VLAN link's
// own address is the node's to hear, whatever the branch pods' rules say.
func (n *node) addIPv6() {
	n.t.Helper()
	n.host.Address(n.t, "eth0", nodeAddress6+"/64")
	n.vpc.Address(n.t, "p0", vpcAddress6+"/64")
	n.host.Route(n.t, netlink.Route{Dst: cidr("::/0"), Gw: net.ParseIP(vpcAddress6)})
	for _, ns := range []*nstest.NS{n.host, n.vpc} {
		ns.Sysctl(n.t, "ipv6/conf/all/forwarding", "1")
		// As strict as it may be met: our links must not listen to routers all the same.
		ns.Sysctl(n.t, "ipv6/conf/default/accept_ra", "2")
	}
	rule := netlink.NewRule()
	rule.Family, rule.Priority, rule.Table, rule.IPProto = unix.AF_INET6, 4, 255, unix.IPPROTO_ICMPV6
	rule.Src = cidr("fe80:ec2::1/128")
	if err := n.host.Handle.RuleAdd(rule); err != nil {
		n.t.Fatal(err)
	}
}

func cidr(s string) *net.IPNet {
	_, n, err := net.ParseCIDR(s)
	if err != nil {
		panic(err)
	}
	return n
}

func (n *node) trunk() int { return n.host.Link(n.t, "trunk").Attrs().Index }

// attachBranch cables a branch ENI to its VLAN id, as the VPC does: the router knows the address's MAC without asking.
func (n *node) attachBranch(vlan int, mac, address string) {
	n.t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("fabric.%d", vlan), n.vpc.Link(n.t, "fabric").Attrs().Index
	if err := n.vpc.Handle.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: vlan, VlanProtocol: netlink.VLAN_PROTOCOL_8021Q}); err != nil {
		n.t.Fatalf("make %s: %v (does this kernel have 802.1Q? These tests run in the VM: go run ./test/kernel ./plugins/...)", attrs.Name, err)
	}
	n.vpc.Up(n.t, attrs.Name)
	n.vpc.Sysctl(n.t, "ipv4/conf/"+attrs.Name+"/rp_filter", "0")
	n.vpc.Address(n.t, attrs.Name, "192.168.32.1/32")
	n.vpc.Address(n.t, attrs.Name, "fe80:ec2::1/64")
	index := n.vpc.Link(n.t, attrs.Name).Attrs().Index
	n.vpc.Route(n.t, netlink.Route{LinkIndex: index, Dst: one(address), Scope: netlink.SCOPE_LINK})
	hw, _ := net.ParseMAC(mac)
	if err := n.vpc.Handle.NeighSet(&netlink.Neigh{LinkIndex: index, State: netlink.NUD_PERMANENT, Family: nl.GetIPFamily(net.ParseIP(address)), IP: net.ParseIP(address), HardwareAddr: hw}); err != nil {
		n.t.Fatal(err)
	}
}

// one is the network of a single address of either family.
func one(address string) *net.IPNet {
	ip := net.ParseIP(address)
	if v4 := ip.To4(); v4 != nil {
		ip = v4
	}
	return &net.IPNet{IP: ip, Mask: net.CIDRMask(8*len(ip), 8*len(ip))}
}

// sandbox is what a runtime knows of a pod.
type sandbox struct {
	id, namespace, name, netns string
	ifName, args               string
}

func newSandbox(id, pod string, ns *nstest.NS) sandbox {
	namespace, name, _ := strings.Cut(pod, "/")
	s := sandbox{id: id, namespace: namespace, name: name, ifName: "eth0"}
	if ns != nil {
		s.netns = ns.Path()
	}
	return s
}

func (n *node) list(version string) *libcni.NetworkConfigList {
	n.t.Helper()
	raw, err := json.Marshal(map[string]any{"cniVersion": version, "name": "aws-cni", "disableCheck": true, "plugins": []any{n.config}})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(raw)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

func (s sandbox) runtimeConf() *libcni.RuntimeConf {
	rc := &libcni.RuntimeConf{ContainerID: s.id, NetNS: s.netns, IfName: s.ifName, Args: [][2]string{{"IgnoreUnknown", "1"}}}
	if s.args == "" {
		rc.Args = append(rc.Args, [2]string{"K8S_POD_NAMESPACE", s.namespace}, [2]string{"K8S_POD_NAME", s.name},
			[2]string{"K8S_POD_INFRA_CONTAINER_ID", s.id}, [2]string{"K8S_POD_UID", "uid-of-" + s.name})
	}
	return rc
}

func (n *node) cni() *libcni.CNIConfig {
	return libcni.NewCNIConfigWithCacheDir([]string{n.bin}, n.cache, nil)
}

func (n *node) add(version string, s sandbox) (res types.Result, err error) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	err = n.host.Try(func() error {
		res, err = n.cni().AddNetworkList(ctx, n.list(version), s.runtimeConf())
		return err
	})
	return res, err
}

func (n *node) mustAdd(s sandbox) *current.Result {
	n.t.Helper()
	res, err := n.add("1.0.0", s)
	if err != nil {
		n.t.Fatalf("ADD of %s: %v", s.name, err)
	}
	r, err := current.GetResult(res)
	if err != nil {
		n.t.Fatal(err)
	}
	return r
}

func (n *node) del(s sandbox) error {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return n.host.Try(func() error { return n.cni().DelNetworkList(ctx, n.list("1.0.0"), s.runtimeConf()) })
}

func (n *node) mustDel(s sandbox) {
	n.t.Helper()
	if err := n.del(s); err != nil {
		n.t.Fatalf("DEL of %s of pod %s: %v", s.id, s.name, err)
	}
}

// forget loses the runtime's cached results.
func (n *node) forget() { n.cache = n.t.TempDir() }

// keepCache copies the cached results, so that a DEL that has been done can come once more with its prevResult.
func (n *node) keepCache() (restore func()) {
	n.t.Helper()
	saved := n.t.TempDir()
	if err := os.CopyFS(saved, os.DirFS(n.cache)); err != nil {
		n.t.Fatal(err)
	}
	return func() { n.cache = saved }
}

func (n *node) wantClean() {
	n.t.Helper()
	after := n.host.Snapshot(n.t)
	if !slices.Equal(n.before, after) {
		n.t.Errorf("left behind on the host:\n%s", difference(n.before, after))
	}
}

func difference(a, b []string) string {
	var out bytes.Buffer
	for _, l := range a {
		if !slices.Contains(b, l) {
			fmt.Fprintln(&out, "-", l)
		}
	}
	for _, l := range b {
		if !slices.Contains(a, l) {
			fmt.Fprintln(&out, "+", l)
		}
	}
	return out.String()
}

func wantCode(t *testing.T, err error, code uint, parts ...string) {
	t.Helper()
	var e *types.Error
	if !errors.As(err, &e) {
		t.Fatalf("want a CNI error with code %d, got %T: %v", code, err, err)
	}
	if e.Code != code {
		t.Errorf("code %d, want %d: %s", e.Code, code, e.Msg)
	}
	for _, p := range parts {
		if !strings.Contains(e.Error(), p) {
			t.Errorf("error %q does not name %q", e.Error(), p)
		}
	}
}

// talk sends a line from one namespace to a server in another and back, by TCP.
func talk(t *testing.T, server *nstest.NS, serverAddr string, client *nstest.NS, clientAddr string) error {
	t.Helper()
	var l net.Listener
	server.Do(t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(serverAddr, "0"))
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		fmt.Fprintln(c, c.RemoteAddr())
	}()
	return client.Try(func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		if clientAddr != "" {
			d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(clientAddr)}
		}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		var seen string
		if _, err := fmt.Fscanln(c, &seen); err != nil {
			return err
		}
		if clientAddr != "" && !strings.HasPrefix(seen, net.JoinHostPort(clientAddr, "")) {
			return fmt.Errorf("the server saw %s, want %s", seen, clientAddr)
		}
		return nil
	})
}
