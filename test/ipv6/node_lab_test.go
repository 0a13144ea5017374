//go:build lab

package ipv6_test

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/vishvananda/netns"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/lab/artifacts"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// programs are what ships, in one folder that instances see.
func (c *cluster) programs(cache *artifacts.Cache) (dir string) {
	dir = filepath.Join(c.dir, "bin")
	must(c.t, os.Mkdir(dir, 0o755))
	for name, pkg := range map[string]string{
		"ipamd": "./cmd/ipamd", "aws-cni": "./cmd/aws-cni", "egress-cni": "./cmd/egress-cni",
		"host-local": "github.com/containernetworking/plugins/plugins/ipam/host-local",
	} {
		path, err := cache.Go(c.t.Context(), name, pkg, "")
		must(c.t, err)
		b, err := os.ReadFile(path)
		must(c.t, err)
		must(c.t, os.WriteFile(filepath.Join(dir, name), b, 0o755))
	}
	return dir
}

// specs tells how instances are made: m5.large ones are VMs, as only those have 802.1Q.
func (c *cluster) specs(cache *artifacts.Cache, bin string) {
	agent, err := instance.Agent(c.t.Context(), cache)
	must(c.t, err)
	kernel, err := cache.Kernel(c.t.Context())
	must(c.t, err)
	c.busybox, err = cache.Busybox(c.t.Context())
	must(c.t, err)
	c.spec = func(s labec2.InstanceSpec) (instance.Spec, bool) {
		return instance.Spec{
			ID: s.ID, Type: s.Type, StateDir: filepath.Join(c.dir, s.ID), Agent: agent, Keep: []string{bin, c.busybox}, Log: slog.New(slog.NewTextHandler(io.Discard, nil)),
			MemoryMiB: 1536, CPUs: 2, MaxENIs: 3, Kernel: kernel,
			Modules: []string{"8021q", "veth", "nf_tables", "nft_ct", "nft_nat", "nft_masq", "nft_chain_nat", "nft_fib_ipv4", "nft_fib_ipv6", "nft_fib_inet", "nf_conntrack", "nf_conntrack_netlink"},
		}, s.Type == string(types.InstanceTypeM5Large)
	}
}

// node is a machine with the node agent.
type node struct {
	*machine
	name, bin string
	env       []string
	agent     instance.Process
	runs      int
}

func (c *cluster) node(bin string) *node {
	t := c.t
	n := &node{machine: c.launch(types.InstanceTypeM5Large, "node"), bin: bin}
	n.name = "node-" + n.id
	must(t, c.admin.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: n.name, Labels: map[string]string{corev1.LabelOSStable: "linux", corev1.LabelInstanceTypeStable: "m5.large"}},
		Spec:       corev1.NodeSpec{ProviderID: "aws:///us-west-2a/" + n.id},
	}))
	n.login()
	n.env = []string{
		"ENABLE_IPv6=true", "ENABLE_IPv4=false", "ENABLE_PREFIX_DELEGATION=true", "ENABLE_POD_ENI=true", "CLUSTER_NAME=six", "MY_NODE_NAME=" + n.name,
		"AWS_EC2_ENDPOINT=http://" + endpointAddr.String(), "HOST_CNI_BIN_PATH=/opt/cni/bin", "HOST_CNI_CONFDIR_PATH=/etc/cni/net.d",
		"AWS_VPC_K8S_CNI_LOG_FILE=stdout", "IP_COOLDOWN_PERIOD=2",
	}
	n.sh("mkdir -p /opt/cni/bin /etc/cni/net.d /var/run/aws-node /var/log/aws-routed-eni")
	t.Cleanup(func() {
		if !t.Failed() {
			return
		}
		logs, _ := filepath.Glob(filepath.Join(c.dir, n.id, "logs", "ipamd*.log"))
		for _, l := range logs {
			b, _ := os.ReadFile(l)
			t.Logf("%s:\n%s", l, b)
		}
		out, _ := n.try("for s in $(ls /run/netns); do echo $s; ip -n $s address; ip -n $s route; ip -n $s -6 route; ip -n $s neigh; done; ip -br link; ip rule; ip route; ip -6 rule; ip -6 route show table all; ip neigh; cat /proc/net/nf_conntrack")
		t.Log(out)
		for _, d := range c.fabric.Drops() {
			t.Log(d)
		}
	})
	return n
}

// login writes the kubeconfig of the node's aws-node pod: its ServiceAccount's rights and the node's name, nothing else.
func (n *node) login() {
	t, ctx := n.c.t, n.c.t.Context()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", GenerateName: "aws-node-"},
		Spec:       corev1.PodSpec{NodeName: n.name, ServiceAccountName: "aws-node", HostNetwork: true, Containers: []corev1.Container{{Name: "aws-node", Image: "i"}}},
	}
	must(t, n.c.admin.Create(ctx, p))
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	must(t, n.c.admin.SubResource("token").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "aws-node"}}, request))
	k := clientcmdapi.NewConfig()
	k.Clusters["lab"] = &clientcmdapi.Cluster{Server: fmt.Sprintf("https://%s:%d", apiAddr, apiPort), TLSServerName: "localhost", CertificateAuthorityData: n.c.cfg.CAData}
	k.AuthInfos["aws-node"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	k.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "aws-node"}
	k.CurrentContext = "lab"
	must(t, clientcmd.WriteToFile(*k, n.kubeconfig()))
}

func (n *node) kubeconfig() string { return filepath.Join(n.c.dir, n.id, "kubeconfig") }

// run does the init container's work and starts the agent.
func (n *node) run(env ...string) {
	t := n.c.t
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	env = slices.Concat(n.env, env)
	r, err := n.Exec(ctx, instance.Command{Argv: []string{filepath.Join(n.bin, "ipamd"), "install", "-source", n.bin, "-host-root", "/nowhere"}, Env: env})
	if err != nil || r.ExitCode != 0 {
		t.Fatalf("install: %v\n%s%s", err, r.Stdout, r.Stderr)
	}
	n.runs++
	n.sh("rm -f /etc/cni/net.d/10-aws.conflist")
	n.agent, err = n.Start(ctx, fmt.Sprintf("ipamd%d", n.runs), instance.Command{Argv: []string{filepath.Join(n.bin, "ipamd"), "run", "-kubeconfig", n.kubeconfig()}, Env: env})
	must(t, err)
	eventually(t, "the agent's conflist", func() error {
		if _, code := n.try("test -s /etc/cni/net.d/10-aws.conflist"); code != 0 {
			return fmt.Errorf("there is none")
		}
		return nil
	})
}

// kill is kill -9.
func (n *node) kill() {
	t := n.c.t
	must(t, n.agent.Signal(t.Context(), syscall.SIGKILL))
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	_, err := n.agent.Wait(ctx)
	must(t, err)
}

// pod is a pod of the node and its sandbox.
type pod struct {
	n      *node
	o      *corev1.Pod
	result map[string]any
	ipv6   netip.Addr
}

// pod creates a pod with its network namespace; with a group's name, it asks for a branch ENI.
func (n *node) pod(name, app string) *pod {
	t := n.c.t
	p := &pod{n: n, o: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"app": app}},
		Spec:       corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}}
	if app != "" {
		one := corev1.ResourceList{"vpc.amazonaws.com/pod-eni": resource.MustParse("1")}
		p.o.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: one, Requests: one}
	}
	must(t, n.c.admin.Create(t.Context(), p.o))
	n.sh("ip netns add " + name)
	return p
}

// chain is what a runtime does with the conflist; the plugins that have no part in it here are left out.
func (p *pod) chain(verb string) error {
	var list struct {
		Name, CNIVersion string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal([]byte(p.n.sh("cat /etc/cni/net.d/10-aws.conflist")), &list); err != nil {
		return err
	}
	list.Plugins = slices.DeleteFunc(list.Plugins, func(c map[string]any) bool { return c["type"] != "aws-cni" && c["type"] != "egress-cni" })
	if verb == "DEL" {
		slices.Reverse(list.Plugins)
	}
	ctx, cancel := context.WithTimeout(p.n.c.t.Context(), 100*time.Second)
	defer cancel()
	for _, c := range list.Plugins {
		c["name"], c["cniVersion"] = list.Name, list.CNIVersion
		if p.result != nil {
			c["prevResult"] = p.result
		}
		stdin, err := json.Marshal(c)
		if err != nil {
			return err
		}
		r, err := p.n.Exec(ctx, instance.Command{
			Argv: []string{fmt.Sprintf("/opt/cni/bin/%s", c["type"])}, Stdin: stdin,
			Env: []string{
				"CNI_COMMAND=" + verb, "CNI_CONTAINERID=s-" + p.o.Name, "CNI_NETNS=/run/netns/" + p.o.Name, "CNI_IFNAME=eth0", "CNI_PATH=/opt/cni/bin",
				fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=s-%[1]s", p.o.Name, p.o.UID),
			},
		})
		if err != nil || r.ExitCode != 0 {
			return fmt.Errorf("%s of %s by %s: %w\n%s%s", verb, p.o.Name, c["type"], err, r.Stdout, r.Stderr)
		}
		if verb == "ADD" {
			p.result = nil
			if err := json.Unmarshal(r.Stdout, &p.result); err != nil {
				return err
			}
		}
	}
	return nil
}

// add wires the pod, and notes its address.
func (p *pod) add() *pod {
	t := p.n.c.t
	t.Helper()
	must(t, p.chain("ADD"))
	for _, ip := range p.result["ips"].([]any) {
		if a := netip.MustParsePrefix(ip.(map[string]any)["address"].(string)).Addr(); a.Is6() {
			p.ipv6 = a
		}
	}
	if !p.ipv6.IsValid() {
		t.Fatalf("%s has no IPv6 address: %v", p.o.Name, p.result)
	}
	return p
}

// end tears the pod down as the kubelet would.
func (p *pod) end() {
	t := p.n.c.t
	must(t, p.chain("DEL"))
	p.n.sh("ip netns del " + p.o.Name)
	must(t, p.n.c.admin.Delete(t.Context(), p.o, client.GracePeriodSeconds(0)))
}

// What should come has the time that a busy machine needs; what should not come is waited for shortly.
const (
	patient = 30
	brief   = 3
)

// reads connects from the pod and returns what it is told; empty where it gets no connection within so many seconds.
func (p *pod) reads(to netip.AddrPort, seconds int) string {
	out, code := p.n.try(fmt.Sprintf("ip netns exec %s timeout %d bash -c 'exec 3<>/dev/tcp/%s/%d && cat <&3' 2>/dev/null", p.o.Name, seconds, to.Addr(), to.Port()))
	if code != 0 {
		return ""
	}
	return out
}

// pings asks the pod to reach an address, and says what came of it.
func (p *pod) pings(to netip.Addr, seconds int) (out string, ok bool) {
	out, code := p.n.try(fmt.Sprintf("ip netns exec %s %s ping -c 1 -W %d %s", p.o.Name, p.n.c.busybox, seconds, to))
	return out, code == 0
}

// serve answers on a port of a machine that is a namespace, with who asked.
func (m *machine) serve(port int) {
	t := m.c.t
	type made struct {
		l   net.Listener
		err error
	}
	result := make(chan made)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with its namespace
		ns, err := netns.GetFromPath(m.NetnsPath())
		if err == nil {
			err = netns.Set(ns)
			ns.Close()
		}
		var l net.Listener
		if err == nil {
			l, err = net.Listen("tcp", fmt.Sprintf("[::]:%d", port))
		}
		result <- made{l, err}
	}()
	r := <-result
	must(t, r.err)
	t.Cleanup(func() { r.l.Close() })
	go func() {
		for {
			conn, err := r.l.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(conn, "hello %s\n", conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			conn.Close()
		}
	}()
}

// refused wants a SYN of the pod to have been dropped by the rules of an ENI, and the flow log to say so.
func (c *cluster) refused(t *testing.T, from netip.Addr, at string, port uint16) {
	t.Helper()
	must(t, c.fabric.Flush())
	drops := c.fabric.Drops()
	dropped := slices.ContainsFunc(drops, func(d vpc.Drop) bool {
		return d.ENI == at && d.Reason == "no-rule" && d.Src.Addr() == from && d.Dst.Port() == port && d.Protocol == "tcp"
	})
	logged := slices.ContainsFunc(strings.Split(c.flows.String(), "\n"), func(l string) bool {
		f := strings.Fields(l)
		return len(f) == 14 && f[2] == at && f[3] == from.String() && f[6] == fmt.Sprint(port) && f[12] == "REJECT"
	})
	if !dropped || !logged {
		t.Errorf("dropped %t, in the flow log %t: %s to port %d at %s", dropped, logged, from, port, at)
	}
}
