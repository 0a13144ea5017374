//go:build lab

package ipamd_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
)

// stock is an m5.large as the stock aws-node leaves it: a second ENI of its making, both ENIs full of addresses (as it keeps
// them by default), rules, route tables and netfilter rules, pods, a checkpoint and a conflist.
type stock struct {
	*containerRuntime
	iptables string // which of the two has its rules: "nft" or "legacy"
	tools    artifacts.Tree
	address  netip.Addr   // the node's
	unused   [2][]string  // addresses by device that no pod has yet
	entries  []stockEntry // of the checkpoint
}

type stockEntry struct {
	Network   string `json:"networkName"`
	Container string `json:"containerID"`
	IfName    string `json:"ifName"`
	IPv4      string `json:"ipv4"`
	At        int64  `json:"allocationTimestamp"`
	Metadata  struct {
		Namespace  string `json:"k8sPodNamespace"`
		Name       string `json:"k8sPodName"`
		Interfaces int    `json:"interfacesCount"`
	} `json:"metadata"`
}

const (
	stockConflist = `{"cniVersion":"0.4.0","name":"aws-cni","disableCheck":true,"plugins":[` +
		`{"name":"aws-cni","type":"aws-cni","vethPrefix":"eni","mtu":"9001","podSGEnforcingMode":"strict","pluginLogFile":"/var/log/aws-routed-eni/plugin.log","pluginLogLevel":"DEBUG"},` +
		`{"type":"portmap","capabilities":{"portMappings":true},"snat":true}]}`
	onPrimary, onSecondary = 0, 1 // device indexes
	mainTable              = 254
)

func launchStock(t *testing.T, role, iptables string) *stock {
	t.Helper()
	cache, err := artifacts.Open()
	must(t, err)
	s := &stock{iptables: iptables}
	s.tools, err = cache.NodeTools(t.Context())
	must(t, err)
	n := launch(t, role, nextSubnet())
	s.containerRuntime = &containerRuntime{node: n, installed: filepath.Join(t.TempDir(), "aws-cni")}
	must(t, os.WriteFile(s.installed, []byte("#!/bin/sh\necho the stock aws-cni >&2\nexit 1\n"), 0o755))
	must(t, os.WriteFile(filepath.Join(n.dir, "10-aws.conflist"), []byte(stockConflist), 0o644))
	s.address = n.cabled()
	for key, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0", "conf/ens5/rp_filter": "2"} {
		n.ns.Sysctl(t, "ipv4/"+key, value)
	}
	count := int32(9) // with the primary address that is what an ENI of an m5.large can have
	_, err = w.ec2.AssignPrivateIpAddresses(t.Context(), &ec2.AssignPrivateIpAddressesInput{NetworkInterfaceId: n.enis()[0].NetworkInterfaceId, SecondaryPrivateIpAddressCount: &count})
	must(t, err)
	tag := func(key, value string) ec2types.Tag { return ec2types.Tag{Key: &key, Value: &value} }
	n.attachNew(onSecondary, &ec2.CreateNetworkInterfaceInput{
		SubnetId: &n.subnet, Groups: []string{w.group}, Description: awssdk.String("aws-K8S-" + n.id), SecondaryPrivateIpAddressCount: &count,
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeNetworkInterface, Tags: []ec2types.Tag{
			tag("node.k8s.amazonaws.com/instance_id", n.id), tag("node.k8s.amazonaws.com/createdAt", time.Now().UTC().Format(time.RFC3339)),
		}}},
	})
	eventually(t, "the second ENI's link", func() bool { return n.ns.Link(t, "ens6") != nil })
	for device, e := range n.enis() {
		for _, a := range e.PrivateIpAddresses[1:] {
			s.unused[device] = append(s.unused[device], *a.PrivateIpAddress)
		}
	}
	s.routing(netip.MustParseAddr(*n.enis()[1].PrivateIpAddress))
	s.netfilter()
	return s
}

// routing is the second ENI's, and the rule for what belongs to the primary one's connections.
func (s *stock) routing(second netip.Addr) {
	t := s.t
	t.Helper()
	subnet := netip.PrefixFrom(second, 24).Masked()
	s.ns.Up(t, "ens6")
	s.ns.Address(t, "ens6", second.String()+"/24")
	ens6, gateway := s.ns.Link(t, "ens6").Attrs().Index, subnet.Addr().Next()
	must(t, s.ns.Handle.RouteDel(&netlink.Route{LinkIndex: ens6, Dst: cidrOf(subnet), Scope: netlink.SCOPE_LINK, Src: second.AsSlice()}))
	s.ns.Route(t, netlink.Route{LinkIndex: ens6, Table: 2, Dst: cidrOf(netip.PrefixFrom(gateway, 32)), Scope: netlink.SCOPE_LINK})
	s.ns.Route(t, netlink.Route{LinkIndex: ens6, Table: 2, Gw: gateway.AsSlice()})
	s.rule(32765, 2, func(r *netlink.Rule) { r.Src = one(second.String()) })
	mask := uint32(0x80)
	s.rule(1024, mainTable, func(r *netlink.Rule) { r.Mark, r.Mask = 0x80, &mask })
}

func (s *stock) rule(priority, table int, set func(*netlink.Rule)) {
	s.t.Helper()
	r := netlink.NewRule()
	r.Family, r.Priority, r.Table = unix.AF_INET, priority, table
	set(r)
	must(s.t, s.ns.Handle.RuleAdd(r))
}

// podRules are those that a pod has, and that stay where its end was not heard.
func (s *stock) podRules(address string, device int) {
	s.t.Helper()
	s.rule(512, mainTable, func(r *netlink.Rule) { r.Dst = one(address) })
	if device != onPrimary {
		s.rule(1536, device+1, func(r *netlink.Rule) { r.Src = one(address) })
	}
}

// netfilter makes the rules by the iptables that the node's kubelet goes by, the VPC's prefix in them.
func (s *stock) netfilter() {
	s.t.Helper()
	_, err := s.xtables(s.ns, "restore", strings.NewReplacer("VPC", "192.168.0.0/16", "NODE", s.address.String()).Replace(`*nat
:AWS-SNAT-CHAIN-0 - [0:0]
:AWS-CONNMARK-CHAIN-0 - [0:0]
-A POSTROUTING -m comment --comment "AWS SNAT CHAIN" -j AWS-SNAT-CHAIN-0
-A AWS-SNAT-CHAIN-0 -d VPC -m comment --comment "AWS SNAT CHAIN" -j RETURN
-A AWS-SNAT-CHAIN-0 ! -o vlan+ -m comment --comment "AWS, SNAT" -m addrtype ! --dst-type LOCAL -j SNAT --to-source NODE --random-fully
-A PREROUTING -i eni+ -m comment --comment "AWS, outbound connections" -j AWS-CONNMARK-CHAIN-0
-A AWS-CONNMARK-CHAIN-0 -d VPC -m comment --comment "AWS CONNMARK CHAIN, VPC CIDR" -j RETURN
-A AWS-CONNMARK-CHAIN-0 -m comment --comment "AWS, CONNMARK" -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -m comment --comment "AWS, CONNMARK" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
*mangle
-A PREROUTING -i ens5 -m comment --comment "AWS, primary ENI" -m addrtype --dst-type LOCAL --limit-iface-in -j CONNMARK --set-xmark 0x80/0x80
-A PREROUTING -i eni+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
-A PREROUTING -i vlan+ -m comment --comment "AWS, primary ENI" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80
COMMIT
`), "--noflush")
	must(s.t, err)
}

// xtablesEnv is what Debian's iptables needs where it is not installed.
func xtablesEnv(tools artifacts.Tree, lockDir string) []string {
	return append(tools.Env(), "XTABLES_LIBDIR="+filepath.Join(tools.Dir, "usr/lib/x86_64-linux-gnu/xtables"), "XTABLES_LOCKFILE="+filepath.Join(lockDir, "xtables.lock"))
}

// xtables runs iptables-<which>-save or -restore.
func (s *stock) xtables(in *nstest.NS, what, stdin string, args ...string) (string, error) {
	path, err := s.tools.Path("iptables-" + s.iptables + "-" + what)
	if err != nil {
		return "", err
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(s.t.Context(), path, args...)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = append(xtablesEnv(s.tools, s.dir), "PATH=/usr/sbin:/usr/bin"), strings.NewReader(stdin), &out, &out
	if err := in.Try(cmd.Start); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return "", fmt.Errorf("%s %q: %w: %s", path, args, err, out.Bytes())
	}
	return out.String(), nil
}

// netfilterLeft are its rules and chains that are there.
func (s *stock) netfilterLeft() (left []string) {
	s.t.Helper()
	text, err := s.xtables(s.ns, "save", "")
	must(s.t, err)
	for line := range strings.Lines(text) {
		if strings.Contains(line, "AWS") {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left
}

// stockPod is a pod that the stock plugin has wired.
type stockPod struct {
	*sandbox
	addr string
	veth string
}

// take is an address of a device that no pod has yet.
func (s *stock) take(device int) (address string) {
	address, s.unused[device] = s.unused[device][0], s.unused[device][1:]
	return address
}

// wire runs a pod on the node: in the API server, as the kubelet tells of it, in the kernel, and in the runtime's cache.
func (s *stock) wire(name string, device int) *stockPod {
	t := s.t
	t.Helper()
	p := &stockPod{sandbox: &sandbox{pod: s.pod(name+"-"+s.id, ""), netns: nstest.New(t)}, addr: s.take(device)}
	p.id = "old-sandbox-of-" + p.pod.Name
	p.pod.Status.Phase, p.pod.Status.PodIP, p.pod.Status.PodIPs = corev1.PodRunning, p.addr, []corev1.PodIP{{IP: p.addr}}
	must(t, w.admin.Status().Update(t.Context(), p.pod))
	p.veth = datapath.HostVethName("eni", "default", p.pod.Name)
	s.ns.Veth(t, p.veth, p.netns, "eth0")
	host, eth0, gateway := s.ns.Link(t, p.veth).Attrs(), p.netns.Link(t, "eth0").Attrs().Index, net.IPv4(169, 254, 1, 1)
	p.netns.Address(t, "eth0", p.addr+"/32")
	p.netns.Route(t, netlink.Route{LinkIndex: eth0, Dst: one("169.254.1.1"), Scope: netlink.SCOPE_LINK})
	p.netns.Route(t, netlink.Route{LinkIndex: eth0, Gw: gateway})
	must(t, p.netns.Handle.NeighSet(&netlink.Neigh{LinkIndex: eth0, State: netlink.NUD_PERMANENT, Family: unix.AF_INET, IP: gateway, HardwareAddr: host.HardwareAddr}))
	s.ns.Route(t, netlink.Route{LinkIndex: host.Index, Dst: one(p.addr), Scope: netlink.SCOPE_LINK})
	s.podRules(p.addr, device)
	table := mainTable
	if device != onPrimary {
		table = device + 1
	}
	p.result = s.cached(fmt.Sprintf(`{"cniVersion":"0.4.0","interfaces":[{"name":%q},{"name":"eth0","mac":"%d","sandbox":%q},{"name":"dummy%s","mac":"0","sandbox":"%d"}],`+
		`"ips":[{"version":"4","interface":1,"address":"%s/32"}],"dns":{}}`, p.veth, table, p.netns.Path(), p.veth[len("eni"):], device, p.addr))
	p.serve(t)
	return p
}

// cached is what a runtime makes of a cached result of the stock conflist's version under the one that is in force now.
func (s *stock) cached(result string) []byte {
	s.t.Helper()
	r, err := create.CreateFromBytes([]byte(result))
	must(s.t, err)
	r, err = r.GetAsVersion("1.0.0")
	must(s.t, err)
	b, err := json.Marshal(r)
	must(s.t, err)
	return b
}

// list puts a sandbox into the checkpoint.
func (s *stock) list(id, pod, address string) {
	e := stockEntry{Network: "aws-cni", Container: id, IfName: "eth0", IPv4: address, At: time.Now().Add(-time.Hour).UnixNano()}
	e.Metadata.Namespace, e.Metadata.Name, e.Metadata.Interfaces = "default", pod, 1
	s.entries = append(s.entries, e)
}

func (s *stock) checkpoint() string { return filepath.Join(s.dir, "ipam.json") }

func (s *stock) writeCheckpoint() {
	s.t.Helper()
	b, err := json.Marshal(map[string]any{"version": "vpc-cni-ipam/1", "allocations": s.entries})
	must(s.t, err)
	must(s.t, os.WriteFile(s.checkpoint(), b, 0o600))
}

// traces are what the node's kernel has of an address, and of a link if one is named.
func (s *stock) traces(address, link string) (found []string) {
	t := s.t
	t.Helper()
	is := func(n *net.IPNet) bool { return n != nil && n.String() == address+"/32" }
	rules, err := s.ns.Handle.RuleList(unix.AF_INET)
	must(t, err)
	for _, r := range rules {
		if is(r.Src) || is(r.Dst) {
			found = append(found, "rule "+r.String())
		}
	}
	routes, err := s.ns.Handle.RouteListFiltered(unix.AF_INET, &netlink.Route{}, netlink.RT_FILTER_TABLE)
	must(t, err)
	for _, r := range routes {
		if is(r.Dst) {
			found = append(found, "route "+r.String())
		}
	}
	if link != "" && s.ns.Link(t, link) != nil {
		found = append(found, "link "+link)
	}
	slices.Sort(found)
	return found
}

func one(address string) *net.IPNet { return cidrOf(netip.MustParsePrefix(address + "/32")) }

func cidrOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
