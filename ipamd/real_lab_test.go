//go:build lab

package ipamd_test

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

// node is an instance with the agent's executable on it.
type node struct {
	t                                    *testing.T
	ns                                   *nstest.NS
	dir, id, name, subnet, endpoint, api string
	env                                  []string
	process                              *exec.Cmd
	binary                               string // of the agent; empty: this build's
	began                                time.Time
}

// join makes the Node object, and the agent's token.
func (n *node) join() {
	n.t.Helper()
	must(n.t, w.admin.Create(n.t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: n.name}}))
	n.login()
}

func (n *node) start() {
	n.t.Helper()
	n.began = time.Now()
	n.process = exec.Command(cmp.Or(n.binary, w.binary), "run", "-kubeconfig", filepath.Join(n.dir, "kubeconfig"), "-state", filepath.Join(n.dir, "state.json"),
		"-socket", n.socket(), "-metrics", "127.0.0.1:61678")
	n.process.Env = append([]string{
		"MY_NODE_NAME=" + n.name, "AWS_EC2_ENDPOINT=" + n.endpoint, "HOST_CNI_CONFDIR_PATH=" + n.dir, "IP_COOLDOWN_PERIOD=1",
		"AWS_VPC_K8S_CNI_BACKING_STORE=" + filepath.Join(n.dir, "ipam.json"), "AWS_VPC_K8S_CNI_LOG_FILE=" + filepath.Join(n.dir, "log"),
	}, n.env...)
	n.process.Stderr = os.Stderr
	n.ns.Do(n.t, n.process.Start)
	p := n.process
	n.t.Cleanup(func() {
		p.Process.Kill()
		p.Wait()
		if log, err := os.ReadFile(filepath.Join(n.dir, "log")); n.t.Failed() && err == nil {
			n.t.Logf("the agent's log:\n%s", log)
		}
	})
}

// kill is kill -9.
func (n *node) kill() {
	n.process.Process.Kill()
	n.process.Wait()
}

func (n *node) socket() string { return filepath.Join(n.dir, "s") }

func (n *node) dial() *nodeagent.Conn {
	n.t.Helper()
	c, err := nodeagent.Dial(n.socket())
	must(n.t, err)
	return c
}

func (n *node) ready() bool {
	c := n.dial()
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	r, err := healthpb.NewHealthClient(c).Check(ctx, &healthpb.HealthCheckRequest{})
	return err == nil && r.Status == healthpb.HealthCheckResponse_SERVING
}

func (n *node) awaitReady() time.Duration {
	n.t.Helper()
	eventually(n.t, "the agent can serve", n.ready)
	return time.Since(n.began)
}

// pod makes a pod on the node; with an annotation, or with "-", it asks for a branch ENI.
func (n *node) pod(name, annotation string, labels ...string) *corev1.Pod {
	n.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{}},
		Spec:       corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "i"}}},
	}
	if annotation != "" {
		one := corev1.ResourceList{"vpc.amazonaws.com/pod-eni": resource.MustParse("1")}
		p.Spec.Containers[0].Resources = corev1.ResourceRequirements{Limits: one, Requests: one}
	}
	for _, l := range labels {
		key, value, _ := strings.Cut(l, "=")
		p.Labels[key] = value
	}
	if len(annotation) > 1 {
		p.Annotations = map[string]string{"vpc.amazonaws.com/pod-eni": annotation}
	}
	must(n.t, w.admin.Create(n.t.Context(), p))
	return p
}

func (n *node) add(ctx context.Context, p *corev1.Pod, sandbox string) (*rpc.AddReply, error) {
	c := n.dial()
	defer c.Close()
	return c.Add(ctx, &rpc.AddRequest{
		Pod:        &rpc.Pod{Namespace: p.Namespace, Name: p.Name, Uid: string(p.UID)},
		Attachment: &rpc.Attachment{ContainerId: sandbox, IfName: "eth0", NetworkName: "aws-cni"},
	}, grpc.WaitForReady(true))
}

func (n *node) mustAdd(p *corev1.Pod, sandbox string) *rpc.AddReply {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	r, err := n.add(ctx, p, sandbox)
	must(n.t, err)
	return r
}

func (n *node) wantRefused(p *corev1.Pod, within time.Duration, code codes.Code, parts ...string) {
	n.t.Helper()
	ctx, cancel := context.WithTimeout(n.t.Context(), within)
	defer cancel()
	r, err := n.add(ctx, p, "sandbox-of-"+p.Name)
	if status.Code(err) != code {
		n.t.Fatalf("answered %v, %v; want %s", r, err, code)
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			n.t.Errorf("%q does not name %q", err, part)
		}
	}
}

func (n *node) event(about, reason string, parts ...string) {
	n.t.Helper()
	var last string
	eventually(n.t, "the event "+reason+" of "+about, func() bool {
		var l corev1.EventList
		must(n.t, w.admin.List(n.t.Context(), &l))
		for _, e := range l.Items {
			if e.InvolvedObject.Name == about && e.Reason == reason {
				last = e.Message
				return true
			}
		}
		return false
	})
	for _, part := range parts {
		if !strings.Contains(last, part) {
			n.t.Errorf("the event %s says %q, not %q", reason, last, part)
		}
	}
}

// attachTrunk does what the VPC resource controller does.
func (n *node) attachTrunk() {
	n.t.Helper()
	kind, index := ec2types.NetworkInterfaceCreationType("trunk"), int32(2)
	out, err := w.ec2.CreateNetworkInterface(n.t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: &n.subnet, InterfaceType: kind, Groups: []string{w.group}})
	must(n.t, err)
	_, err = w.ec2.AttachNetworkInterface(n.t.Context(), &ec2.AttachNetworkInterfaceInput{
		NetworkInterfaceId: out.NetworkInterface.NetworkInterfaceId, InstanceId: &n.id, DeviceIndex: &index,
	})
	must(n.t, err)
}

func (n *node) labelled() bool {
	var o corev1.Node
	must(n.t, w.admin.Get(n.t.Context(), client.ObjectKey{Name: n.name}, &o))
	return o.Labels["vpc.amazonaws.com/has-trunk-attached"] == "true"
}

func (n *node) hasFeature() bool {
	var o cninodev1.CNINode
	err := w.admin.Get(n.t.Context(), client.ObjectKey{Name: n.name}, &o)
	_, has := o.Has(cninodev1.SecurityGroupsForPods)
	return err == nil && has
}

func annotation(vlan int) string {
	return fmt.Sprintf(`[{"eniId":"eni-0b%015d","ifAddress":"06:20:0d:3c:5f:%02x","privateIp":"192.168.200.%d","vlanId":%d,"subnetCidr":"192.168.200.0/24"}]`, vlan, vlan, 10+vlan, vlan)
}

// TestOnRealParts goes from a node that joins to its branch pods, with the hosted control plane (no ledger) first, and
// then with ours.
func TestOnRealParts(t *testing.T) {
	role(t, "nodes", cniPolicy)
	n := launch(t, "nodes", "192.168.0.0/24")
	n.env = []string{"ENABLE_POD_ENI=true"}
	n.join()
	must(t, w.admin.Create(t.Context(), &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: n.name}}))
	n.start()
	took := n.awaitReady()
	t.Logf("ready %v after the start of the process", took)
	if took > 15*time.Second {
		t.Errorf("ready after %v", took)
	}
	if _, err := os.Stat(filepath.Join(n.dir, "10-aws.conflist")); err != nil {
		t.Error(err)
	}
	eventually(t, "the feature", n.hasFeature)
	if n.labelled() {
		t.Error("labelled without a trunk")
	}
	green := n.pod("green", annotation(7))
	n.wantRefused(green, 2*time.Second, codes.Unavailable, "default/green", "trunk")
	n.attachTrunk()
	eventually(t, "the label", n.labelled)
	var o corev1.Node
	must(t, w.admin.Get(t.Context(), client.ObjectKey{Name: n.name}, &o))
	delete(o.Labels, "vpc.amazonaws.com/has-trunk-attached")
	must(t, w.admin.Update(t.Context(), &o))
	eventually(t, "the label again, after somebody took it", n.labelled)
	b := n.mustAdd(green, "s1").GetBranch()
	trunk := n.ns.Link(t, "ens7")
	if b.GetVlanId() != 7 || b.GetGateway() != "192.168.200.1" || int(b.GetTrunkIfindex()) != trunk.Attrs().Index {
		t.Errorf("answered %v, the trunk is %v", b, trunk.Attrs())
	}
	n.wantRefused(n.pod("bad", `[{"eniId":"eni-1"}]`), 5*time.Second, codes.FailedPrecondition, "default/bad", "vlanId")
	n.event("bad", "PodNotWired", "vlanId")
	n.wantRefused(n.pod("late", "-"), 2*time.Second, codes.DeadlineExceeded, "default/late", "vpc.amazonaws.com/pod-eni")

	n.ns.Do(t, func() error {
		c, err := net.Dial("tcp", "127.0.0.1:61678")
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := io.WriteString(c, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		answer, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		metrics := string(answer)
		for _, want := range []string{`awscni_aws_api_latency_ms_count{api="DescribeNetworkInterfaces",error="false",status="200"}`, "awscni_ready 1", "awscni_eni_allocated ", `awscni_wait_seconds_count{cause="annotation"}`} {
			if !strings.Contains(metrics, want) {
				t.Errorf("no %s in the executable's metrics", want)
			}
		}
		return nil
	})

	// The policies come while the agent runs, and at once they hold. EC2 tells what groups a branch ENI has.
	_, err := envtest.InstallCRDs(w.cfg, envtest.CRDInstallOptions{Paths: []string{"../config/crd/vpcresources.k8s.aws_securitygrouppolicies.yaml"}})
	must(t, err)
	sg, err := w.ec2.CreateSecurityGroup(t.Context(), &ec2.CreateSecurityGroupInput{VpcId: &w.vpc, GroupName: awssdk.String("shop"), Description: awssdk.String("shop")})
	must(t, err)
	must(t, w.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "shop"}, Spec: v1beta1.SecurityGroupPolicySpec{
		PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "shop"}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{*sg.GroupId}},
	}}))
	n.wantRefused(n.pod("missed", "", "app=shop"), 20*time.Second, codes.FailedPrecondition, "default/missed", "default/shop")
	e, err := w.ec2.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: &n.subnet, Groups: []string{w.group}})
	must(t, err)
	eni := *e.NetworkInterface.NetworkInterfaceId
	shop := n.pod("shop", strings.Replace(annotation(9), "eni-0b000000000000009", eni, 1), "app=shop")
	n.wantRefused(shop, 6*time.Second, codes.DeadlineExceeded, "default/shop", *sg.GroupId)
	_, err = w.ec2.ModifyNetworkInterfaceAttribute(t.Context(), &ec2.ModifyNetworkInterfaceAttributeInput{NetworkInterfaceId: &eni, Groups: []string{*sg.GroupId}})
	must(t, err)
	if r := n.mustAdd(shop, "s9"); r.GetBranch().GetVlanId() != 9 {
		t.Errorf("answered %v", r)
	}

	// Our control plane is installed, the agent restarts: nothing is wired that the ledger does not confirm.
	_, err = envtest.InstallCRDs(w.cfg, envtest.CRDInstallOptions{Paths: []string{"../config/crd/branchline.dev_branchledgers.yaml"}})
	must(t, err)
	n.kill()
	l := &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: n.id}, Spec: ledgerv1.BranchLedgerSpec{InstanceID: n.id, NodeName: n.name, Slots: []ledgerv1.Slot{}}}
	must(t, w.admin.Create(t.Context(), l))
	n.start()
	n.awaitReady()
	if again := n.mustAdd(green, "s1").GetBranch(); again.GetAddress() != b.GetAddress() {
		t.Errorf("after the restart %v", again)
	}
	blue := n.pod("blue", annotation(8))
	n.wantRefused(blue, 2*time.Second, codes.DeadlineExceeded, "default/blue", n.id, "VLAN 8")
	l.Spec.Slots = []ledgerv1.Slot{{
		VLANID: 8, State: ledgerv1.Bound, PodUID: types.UID(blue.UID), PodNamespace: "default", PodName: "blue", ENIID: "eni-0b000000000000008", SecurityGroups: []string{"sg-1"}, Since: metav1.NowMicro(),
	}}
	must(t, w.admin.Update(t.Context(), l))
	n.mustAdd(blue, "s2")
}

// TestKilledAtRandomPointsNoAddressIsGivenTwice also has IMDS show the second ENI late.
func TestKilledAtRandomPointsNoAddressIsGivenTwice(t *testing.T) {
	role(t, "killed", cniPolicy)
	n := launch(t, "killed", "192.168.1.0/24")
	n.join()
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	n.start()
	n.awaitReady()
	const pods = 15 // more than the primary ENI has addresses for
	var mu sync.Mutex
	holds := map[string]string{} // sandbox -> address
	var wg sync.WaitGroup
	for i := range pods {
		p := n.pod(fmt.Sprintf("pod-%d", i), "")
		wg.Go(func() {
			for ctx := t.Context(); ctx.Err() == nil; {
				try, cancel := context.WithTimeout(ctx, 20*time.Second)
				r, err := n.add(try, p, p.Name)
				cancel()
				if err != nil {
					continue
				}
				mu.Lock()
				defer mu.Unlock()
				holds[p.Name] = r.GetRegular().GetAddress()
				return
			}
		})
	}
	for range 6 {
		time.Sleep(time.Duration(random.IntN(700)) * time.Millisecond) // the random point
		n.kill()
		n.start()
	}
	wg.Wait()
	seen := map[string]string{}
	for sandbox, addr := range holds {
		if other := seen[addr]; other != "" || addr == "" {
			t.Errorf("%s and %s both have %q", sandbox, other, addr)
		}
		seen[addr] = sandbox
		p := &corev1.Pod{}
		must(t, w.admin.Get(t.Context(), client.ObjectKey{Namespace: "default", Name: sandbox}, p))
		if again := n.mustAdd(p, sandbox).GetRegular().GetAddress(); again != addr {
			t.Errorf("%s had %s and has %s", sandbox, addr, again)
		}
	}
	if len(holds) != pods {
		t.Errorf("%d pods have an address, want %d", len(holds), pods)
	}
}

// TestP23 is "on unsupported types a slot is lost": with the feature on, a t3.medium gives pods every address that its
// three interfaces can have, 3 x 5 (with hostNetwork pods the 17 pods that EKS counts for the type), and says why there
// is no more.
func TestP23AT3MediumLosesNoSlotAndSaysWhenItIsFull(t *testing.T) {
	role(t, "small", cniPolicy)
	n := launchA(t, ec2types.InstanceTypeT3Medium, "small", "192.168.5.0/24")
	n.env = []string{"ENABLE_POD_ENI=true"}
	n.join()
	must(t, w.admin.Create(t.Context(), &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: n.name}}))
	n.start()
	n.awaitReady()
	const most = 15
	holds := map[string]string{}
	for i := range most {
		p := n.pod(fmt.Sprintf("small-%d", i), "")
		addr := n.mustAdd(p, p.Name).GetRegular().GetAddress()
		if other := holds[addr]; addr == "" || other != "" {
			t.Errorf("%s has %q, which %q has, too", p.Name, addr, other)
		}
		holds[addr] = p.Name
	}
	n.wantRefused(n.pod("small-16th", ""), 5*time.Second, codes.ResourceExhausted, "default/small-16th", "t3.medium")
	n.event("small-16th", "PodNotWired", "t3.medium")
	n.event(n.name, "TrunkUnsupported", "t3.medium")
	out, err := w.ec2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{
		Filters: []ec2types.Filter{{Name: awssdk.String("attachment.instance-id"), Values: []string{n.id}}},
	})
	must(t, err)
	for _, e := range out.NetworkInterfaces {
		if e.InterfaceType != ec2types.NetworkInterfaceTypeInterface || len(e.PrivateIpAddresses) != 6 {
			t.Errorf("%s is a %s with %d addresses, want an interface with 6", *e.NetworkInterfaceId, e.InterfaceType, len(e.PrivateIpAddresses))
		}
	}
	if len(out.NetworkInterfaces) != 3 || n.labelled() || n.hasFeature() {
		t.Errorf("%d interfaces, labelled %t, feature %t; want 3 and neither", len(out.NetworkInterfaces), n.labelled(), n.hasFeature())
	}
}

func TestWhatEC2RefusesIsSaidAndTriedAgain(t *testing.T) {
	all := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"ec2:*","Resource":"*"}]}`
	deny := strings.Replace(all, `]}`, `,{"Effect":"Deny","Action":["ec2:AssignPrivateIpAddresses"],"Resource":"*"}]}`, 1)
	t.Run("denied", func(t *testing.T) {
		role(t, "denied", deny)
		n := launch(t, "denied", "192.168.2.0/24")
		n.join()
		n.start()
		n.event(n.name, "EC2Denied", "ec2:AssignPrivateIpAddresses", "arn:aws:ec2:us-west-2:111122223333:network-interface/eni-")
		if n.ready() {
			t.Error("ready without an address")
		}
		name, inline := "denied", "inline"
		_, err := w.iam.PutRolePolicy(t.Context(), &iam.PutRolePolicyInput{RoleName: &name, PolicyName: &inline, PolicyDocument: &all})
		must(t, err)
		n.awaitReady()
	})
	t.Run("throttled", func(t *testing.T) {
		role(t, "throttled", all)
		n := launch(t, "throttled", "192.168.3.0/24")
		n.join()
		w.region.Faults().Add(labec2.Fault{API: "AssignPrivateIpAddresses", Role: "throttled", Times: 4, Code: "RequestLimitExceeded"})
		n.start()
		t.Logf("ready after %v", n.awaitReady())
	})
	t.Run("subnet full", func(t *testing.T) {
		role(t, "full", all)
		n := launch(t, "full", "192.168.4.0/28") // 11 addresses, one of them the node's
		n.join()
		count := int32(8)
		_, err := w.ec2.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: &n.subnet, SecondaryPrivateIpAddressCount: &count})
		must(t, err)
		n.start()
		n.awaitReady()
		n.mustAdd(n.pod("last", ""), "s1")
		n.event(n.name, "AddressesNotAvailable", "InsufficientFreeAddressesInSubnet")
		n.wantRefused(n.pod("too-many", ""), 4*time.Second, codes.ResourceExhausted, "default/too-many", "InsufficientFreeAddressesInSubnet")
		n.event("too-many", "PodNotWired", "InsufficientFreeAddressesInSubnet")
	})
}
