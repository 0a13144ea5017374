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
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// TestAPodReachesTheVPCByEachNetworkCardOfItsInstance with the executables that ship: each of its addresses leaves by the ENI
// of its card, and is answered; so it stays while the agent is killed. A pod beside it has one interface.
func TestAPodReachesTheVPCByEachNetworkCardOfItsInstance(t *testing.T) {
	role(t, "cards", cniPolicy)
	aws := filepath.Join(t.TempDir(), "aws-cni")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", aws, "github.com/branchline-cni/branchline/cmd/aws-cni").CombinedOutput(); err != nil {
		t.Fatalf("build the CNI executable: %v\n%s", err, out)
	}
	letIn(t)
	w.plugs.cable = true
	defer func() { w.plugs.cable = false }()
	peer := launchA(t, ec2types.InstanceTypeT3Medium, "cards", "192.168.60.0/24")
	server := netip.AddrPortFrom(peer.cabled(), 7)
	peer.answers(server)
	n := launchA(t, ec2types.InstanceTypeC6in32xlarge, "cards", "192.168.61.0/24") // two cards
	n.cabled()
	for key, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "2", "conf/default/rp_filter": "2", "conf/all/src_valid_mark": "1"} {
		n.ns.Sysctl(t, "ipv4/"+key, value)
	}
	n.env = []string{"ENABLE_MULTI_NIC=true", "WARM_IP_TARGET=1"}
	n.join()
	n.start()
	n.awaitReady()

	both, one := n.cniPod(aws, "several", "multi-nic-attachment"), n.cniPod(aws, "one", "")
	both.run("ADD")
	one.run("ADD")
	if a := both.addresses(); len(a) != 2 {
		t.Fatalf("the pod's result has %v: %v", a, both.result)
	}
	if a := one.addresses(); len(a) != 1 {
		t.Fatalf("a pod that asks for nothing has %v", a)
	}
	if one.ns.Link(t, "eth0"); both.ns.Link(t, "mNicIf1") == nil {
		t.Fatal("no second interface")
	}
	reaches := func(when string) {
		t.Helper()
		for card, from := range both.addresses() {
			both.reaches(server, from, card, when)
		}
		one.reaches(server, one.addresses()[0], 0, when)
	}
	reaches("at first")
	n.kill()
	reaches("without an agent")
	n.start()
	n.awaitReady()
	before := both.addresses()
	both.run("CHECK")
	if again := n.mustAddSeveral(both.pod, both.sandbox()); again[0] != before[0] || again[1] != before[1] {
		t.Errorf("after the restart the agent says %v, before %v", again, before)
	}
	reaches("after the agent's restart")
	both.run("DEL")
	one.run("DEL")
	if left := n.ns.Routes(t, netlink.FAMILY_V4, 511); len(left) > 0 {
		t.Errorf("left of the pods: %v", left)
	}
}

// cabled does what DHCP does on the instance's primary ENI.
func (n *node) cabled() netip.Addr {
	n.t.Helper()
	primary := n.attached(0)[0]
	a := netip.MustParseAddr(*primary.PrivateIpAddress)
	n.ns.Address(n.t, "ens5", a.String()+"/24")
	gateway := netip.PrefixFrom(a, 24).Masked().Addr().Next()
	n.ns.Route(n.t, netlink.Route{LinkIndex: n.ns.Link(n.t, "ens5").Attrs().Index, Gw: gateway.AsSlice()})
	return a
}

// attached are the ENIs on one network card, by device index.
func (n *node) attached(card int32) (out []ec2types.NetworkInterface) {
	n.t.Helper()
	all, err := w.ec2.DescribeNetworkInterfaces(n.t.Context(), &ec2.DescribeNetworkInterfacesInput{
		Filters: []ec2types.Filter{{Name: awssdk.String("attachment.instance-id"), Values: []string{n.id}}},
	})
	must(n.t, err)
	for _, e := range all.NetworkInterfaces {
		if awssdk.ToInt32(e.Attachment.NetworkCardIndex) == card {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b ec2types.NetworkInterface) int {
		return int(*a.Attachment.DeviceIndex - *b.Attachment.DeviceIndex)
	})
	return out
}

// answers tells who connects which address it has.
func (n *node) answers(at netip.AddrPort) {
	n.t.Helper()
	l := n.listen(at.String())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap())
			c.Close()
		}
	}()
}

func (n *node) mustAddSeveral(p *corev1.Pod, sandbox string) (out []netip.Addr) {
	n.t.Helper()
	c := n.dial()
	defer c.Close()
	r, err := c.Add(n.t.Context(), severalRequest(p, sandbox))
	must(n.t, err)
	out = append(out, netip.MustParseAddr(r.GetRegular().GetAddress()))
	for _, f := range r.GetFurther() {
		out = append(out, netip.MustParseAddr(f.GetAddress()))
	}
	return out
}

// cniPod is a pod that the executable wires.
type cniPod struct {
	n      *node
	binary string
	pod    *corev1.Pod
	ns     *nstest.NS
	result map[string]any
}

func (n *node) cniPod(binary, name, config string) *cniPod {
	n.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if config != "" {
		p.Annotations = map[string]string{"k8s.amazonaws.com/nicConfig": config}
	}
	must(n.t, w.admin.Create(n.t.Context(), p))
	return &cniPod{n: n, binary: binary, pod: p, ns: nstest.New(n.t)}
}

func (p *cniPod) sandbox() string { return "sandbox-of-" + p.pod.Name }

// run does what a runtime does with the agent's conflist; plugins chained behind ours have no part in it here.
func (p *cniPod) run(verb string) {
	t := p.n.t
	t.Helper()
	b, err := os.ReadFile(filepath.Join(p.n.dir, "10-aws.conflist"))
	must(t, err)
	var list struct {
		Name, CNIVersion string
		Plugins          []map[string]any
	}
	must(t, json.Unmarshal(b, &list))
	c := list.Plugins[slices.IndexFunc(list.Plugins, func(c map[string]any) bool { return c["type"] == "aws-cni" })]
	c["name"], c["cniVersion"], c["ipamdSocket"], c["pluginLogFile"] = list.Name, list.CNIVersion, p.n.socket(), filepath.Join(p.n.dir, "plugin.log")
	if p.result != nil {
		c["prevResult"] = p.result
	}
	stdin, err := json.Marshal(c)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), p.binary)
	var out, said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(stdin), &out, &said
	cmd.Env = []string{
		"CNI_COMMAND=" + verb, "CNI_CONTAINERID=" + p.sandbox(), "CNI_NETNS=" + p.ns.Path(), "CNI_IFNAME=eth0", "CNI_PATH=" + filepath.Dir(p.binary),
		fmt.Sprintf("CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=%s;K8S_POD_UID=%s;K8S_POD_INFRA_CONTAINER_ID=%s", p.pod.Name, p.pod.UID, p.sandbox()),
	}
	p.n.ns.Do(t, cmd.Start)
	if err := cmd.Wait(); err != nil {
		log, _ := os.ReadFile(filepath.Join(p.n.dir, "plugin.log"))
		t.Fatalf("%s of %s: %v\n%s%s\n%s", verb, p.pod.Name, err, out.String(), said.String(), log)
	}
	if verb == "ADD" {
		must(t, json.Unmarshal(out.Bytes(), &p.result))
	}
}

// addresses are the result's, the first network card's first.
func (p *cniPod) addresses() (out []netip.Addr) {
	ips, _ := p.result["ips"].([]any)
	for _, ip := range ips {
		out = append(out, netip.MustParsePrefix(ip.(map[string]any)["address"].(string)).Addr())
	}
	return out
}

// reaches wants the server to answer one of the pod's addresses, and the VPC to have seen the packets on the ENI of that card.
func (p *cniPod) reaches(server netip.AddrPort, from netip.Addr, card int, when string) {
	t := p.n.t
	t.Helper()
	told := make([]byte, 64)
	p.ns.Do(t, func() error {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: 20 * time.Second}
		c, err := d.Dial("tcp", server.String())
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
			return err
		}
		n, err := c.Read(told)
		told = told[:n]
		return err
	})
	if string(told) != from.String() {
		t.Errorf("%s: %s has %s and the server saw %q", when, p.pod.Name, from, told)
	}
	owner := ""
	for _, e := range p.n.attached(int32(card)) {
		if slices.ContainsFunc(e.PrivateIpAddresses, func(a ec2types.NetworkInterfacePrivateIpAddress) bool { return *a.PrivateIpAddress == from.String() }) {
			owner = *e.NetworkInterfaceId
		}
	}
	if owner == "" {
		t.Fatalf("%s: no ENI of card %d has %s", when, card, from)
	}
	must(t, w.fabric.Flush())
	sent := 0
	for line := range strings.Lines(w.flows.String()) {
		// version account eni source destination ports protocol packets bytes start end action status
		f := strings.Fields(line)
		if len(f) != 14 || f[3] != from.String() || f[4] != server.Addr().String() || f[12] != "ACCEPT" {
			continue
		}
		switch {
		case f[2] == owner:
			sent++
		case slices.ContainsFunc(slices.Concat(p.n.attached(0), p.n.attached(1)), func(e ec2types.NetworkInterface) bool { return *e.NetworkInterfaceId == f[2] }):
			t.Errorf("%s: what %s sends leaves by %s, it is an address of %s", when, from, f[2], owner)
		}
	}
	if sent == 0 {
		t.Errorf("%s: the VPC has seen nothing from %s on %s; it dropped %v", when, from, owner, w.fabric.Drops())
	}
}

// text is written by the fabric and read by tests.
type text struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (x *text) Write(p []byte) (int, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.Write(p)
}

func (x *text) String() string {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.b.String()
}

// severalRequest is of an executable that can wire several interfaces.
func severalRequest(p *corev1.Pod, sandbox string) *rpc.AddRequest {
	return &rpc.AddRequest{
		Pod:        &rpc.Pod{Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID)},
		Attachment: &rpc.Attachment{ContainerId: sandbox, IfName: "eth0", NetworkName: "aws-cni"}, SeveralInterfaces: true,
	}
}
