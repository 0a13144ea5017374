//go:build lab

package ipv6_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/go-logr/logr"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/lab/artifacts"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/ec2/account"
	"github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// What an instance reaches over its ENI.
var (
	imdsAddr     = netip.MustParseAddr("169.254.169.254")
	endpointAddr = netip.MustParseAddr("192.168.0.3") // EC2's
	apiAddr      = netip.MustParseAddr("192.168.0.2") // the API server's; like EC2's one that no ENI can have
)

const apiPort = 6443

// cluster is an API server, a region with one dual-stack subnet, its data plane, and a controller.
type cluster struct {
	t       *testing.T
	admin   client.Client
	cfg     *rest.Config
	region  *labec2.Region
	fabric  *vpc.Fabric
	flows   *text
	account account.Account
	dir     string // short: sockets are in it
	subnet  string
	busybox string
	ipv6    netip.Prefix // the subnet's
	groups  map[string]string

	spec func(labec2.InstanceSpec) (instance.Spec, bool) // and whether it is a VM

	mu    sync.Mutex
	hosts map[string]instance.Instance
	owner map[string]string // ENI -> instance
}

// text is written by the fabric and read by the test.
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

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually looks again at what others change, until a deadline that a slow VM can keep.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	for deadline := time.Now().Add(90 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
	}
}

func newCluster(t *testing.T, cache *artifacts.Cache) *cluster {
	t.Helper()
	ctrl.SetLogger(logr.Discard())
	dir, err := os.MkdirTemp("", "bl6-")
	must(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	c := &cluster{t: t, dir: dir, flows: &text{}, hosts: map[string]instance.Instance{}, owner: map[string]string{}, groups: map[string]string{}}
	c.startAPI(cache)
	c.fabric = vpc.New(vpc.Options{FlowLog: c.flows, FlowInterval: -1, Services: c.services()})
	t.Cleanup(func() { c.fabric.Close() })
	c.region = labec2.New(labec2.Config{Limits: labec2.NoRequestLimits(), Instances: c, OnChange: c.fabric.Apply, MetadataDelay: time.Second})
	t.Cleanup(c.region.Close)
	c.startCloud()
	return c
}

func (c *cluster) startAPI(cache *artifacts.Cache) {
	t := c.t
	hyperkube, err := cache.Hyperkube(t.Context())
	must(t, err)
	for _, name := range []string{"etcd", "kube-apiserver", "kubectl"} {
		must(t, os.Symlink(hyperkube, filepath.Join(c.dir, name)))
	}
	env := &envtest.Environment{BinaryAssetsDirectory: c.dir, ErrorIfCRDPathMissing: true, CRDDirectoryPaths: []string{"../../config/crd"}}
	c.cfg, err = env.Start()
	must(t, err)
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme, err := controller.Scheme()
	must(t, err)
	c.admin, err = client.New(c.cfg, client.Options{Scheme: scheme})
	must(t, err)
	for _, manifest := range [][]byte{config.ControllerRBAC(), config.AWSNode()} {
		r := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
		for {
			o := &unstructured.Unstructured{}
			if err := r.Decode(o); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatal(err)
			}
			if len(o.Object) > 0 {
				must(t, client.IgnoreAlreadyExists(c.admin.Create(t.Context(), o)))
			}
		}
	}
}

// nodePolicy is what EKS's guide calls AmazonEKS_CNI_IPv6_Policy, as docs/install.md has it.
const nodePolicy = `{"Version": "2012-10-17", "Statement": [
	{"Effect": "Allow", "Resource": "*", "Action": ["ec2:AssignIpv6Addresses", "ec2:DescribeInstances", "ec2:DescribeTags",
		"ec2:DescribeNetworkInterfaces", "ec2:DescribeInstanceTypes"]},
	{"Effect": "Allow", "Action": "ec2:CreateTags", "Resource": "arn:aws:ec2:*:*:network-interface/*"}]}`

// startCloud makes the VPC, its groups and roles, and runs the controller.
func (c *cluster) startCloud() {
	t, ctx := c.t, c.t.Context()
	srv := httptest.NewServer(c.region.Handler())
	t.Cleanup(srv.Close)
	as := func(key, secret, token string) awssdk.Config {
		return awssdk.Config{Region: "us-west-2", BaseEndpoint: &srv.URL, Credentials: credentials.NewStaticCredentialsProvider(key, secret, token)}
	}
	key, secret := c.region.AdminCredentials()
	c.account = account.New(as(key, secret, ""))
	v, err := c.account.EC2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("192.168.0.0/16"), AmazonProvidedIpv6CidrBlock: awssdk.Bool(true)})
	must(t, err)
	c.ipv6 = netip.PrefixFrom(netip.MustParsePrefix(*v.Vpc.Ipv6CidrBlockAssociationSet[0].Ipv6CidrBlock).Addr(), 64)
	s, err := c.account.EC2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: v.Vpc.VpcId, CidrBlock: awssdk.String("192.168.0.0/19"), Ipv6CidrBlock: awssdk.String(c.ipv6.String())})
	must(t, err)
	c.subnet = *s.Subnet.SubnetId
	for _, name := range []string{"node", "pod", "other-pod", "db"} {
		c.groups[name], err = c.account.Group(ctx, *v.Vpc.VpcId, name, name)
		must(t, err)
	}
	c.allow("node", "-1", -1, "node")
	c.allow("db", "tcp", 5432, "pod")
	c.allow("db", "tcp", 443, c.ipv6.String())
	for role, document := range map[string]string{"node": nodePolicy, "controller": string(config.ControllerIAMPolicy())} {
		must(t, c.account.Role(ctx, role))
		must(t, c.account.Put(ctx, role, "inline", document))
	}
	keys, ok := c.region.RoleCredentials("controller", "i-controller")
	if !ok {
		t.Fatal("no role")
	}
	run, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- controller.Run(run, controller.Options{
			Config: c.cfg, ClusterName: "six", Log: slog.New(slog.DiscardHandler), CoolDown: func(context.Context) time.Duration { return time.Second },
			Recheck: time.Second, EC2: ec2.NewFromConfig(as(keys.AccessKeyID, keys.SecretAccessKey, keys.Token)),
		})
	}()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the controller ended with %v", err)
		}
	})
}

// allow lets a protocol and port into a group from another group or an IPv6 CIDR.
func (c *cluster) allow(group, protocol string, port int32, peer string) {
	p := types.IpPermission{IpProtocol: &protocol, FromPort: &port, ToPort: &port}
	if strings.Contains(peer, ":") {
		p.Ipv6Ranges = []types.Ipv6Range{{CidrIpv6: &peer}}
	} else {
		p.UserIdGroupPairs = []types.UserIdGroupPair{{GroupId: awssdk.String(c.groups[peer])}}
	}
	_, err := c.account.EC2.AuthorizeSecurityGroupIngress(c.t.Context(), &ec2.AuthorizeSecurityGroupIngressInput{GroupId: awssdk.String(c.groups[group]), IpPermissions: []types.IpPermission{p}})
	must(c.t, err)
}

// services are what the VPC answers over each ENI: IMDS, EC2, and the API server behind a plain relay.
func (c *cluster) services() []vpc.Service {
	web := func(h func(eniID string) http.Handler) func(net.Listener, string) {
		return func(l net.Listener, eniID string) {
			s := &http.Server{Handler: h(eniID), ReadHeaderTimeout: 10 * time.Second}
			_ = s.Serve(l) // ends with the ENI
		}
	}
	var once sync.Map
	return []vpc.Service{
		{Addr: imdsAddr, Port: 80, Net: "tcp", HopLimit: 1, ServeTCP: web(func(eniID string) http.Handler {
			c.mu.Lock()
			id := c.owner[eniID]
			c.mu.Unlock()
			h, _ := once.LoadOrStore(id, imds.Handler(c.region.Metadata(id), nil))
			return h.(http.Handler)
		})},
		{Addr: endpointAddr, Port: 80, Net: "tcp", ServeTCP: web(func(string) http.Handler { return c.region.Handler() })},
		{Addr: apiAddr, Port: apiPort, Net: "tcp", ServeTCP: func(l net.Listener, _ string) { relay(l, strings.TrimPrefix(c.cfg.Host, "https://")) }},
	}
}

func relay(l net.Listener, to string) {
	for {
		in, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer in.Close()
			out, err := net.Dial("tcp", strings.TrimSuffix(to, "/"))
			if err != nil {
				return
			}
			defer out.Close()
			go func() {
				_, _ = io.Copy(out, in)
				out.Close()
			}()
			_, _ = io.Copy(in, out)
		}()
	}
}

// What follows makes real what EC2 says (labec2.Instances).

func (c *cluster) Launch(ctx context.Context, spec labec2.InstanceSpec) error {
	s, vm := c.spec(spec)
	start := instance.StartNetns
	if vm {
		start = instance.StartVM
	}
	i, err := start(ctx, s)
	if err != nil {
		return err
	}
	c.mu.Lock()
	c.hosts[spec.ID] = i
	c.mu.Unlock()
	return c.Attach(ctx, spec.ID, spec.Primary)
}

func (c *cluster) host(id string) instance.Instance {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.hosts[id]
}

func (c *cluster) Attach(ctx context.Context, instanceID string, e labec2.AttachmentSpec) error {
	c.mu.Lock()
	c.owner[e.ENIID] = instanceID
	c.mu.Unlock()
	link, err := c.host(instanceID).AttachENI(ctx, e)
	if err != nil {
		return err
	}
	return c.fabric.AddPort(e.ENIID, link)
}

func (c *cluster) Detach(ctx context.Context, instanceID, eniID string) error {
	return errors.Join(c.host(instanceID).DetachENI(ctx, eniID), c.fabric.RemovePort(eniID))
}

func (c *cluster) Terminate(_ context.Context, instanceID string) error {
	return c.host(instanceID).Close()
}

// machine is an instance with an IPv6 address.
type machine struct {
	instance.Instance
	c       *cluster
	id, eni string
	ipv6    netip.Addr
}

// launch runs an instance and does what its DHCPv6 client and the router's advertisements would: the address and the default route.
func (c *cluster) launch(kind types.InstanceType, group string) *machine {
	t := c.t
	out, err := c.account.EC2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-0b1abc0000000lab1"), InstanceType: kind, MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1), SubnetId: &c.subnet,
		SecurityGroupIds: []string{c.groups[group]}, Ipv6AddressCount: awssdk.Int32(1), IamInstanceProfile: &types.IamInstanceProfileSpecification{Name: awssdk.String("node")},
	})
	must(t, err)
	i := out.Instances[0]
	m := &machine{c: c, id: *i.InstanceId, eni: *i.NetworkInterfaces[0].NetworkInterfaceId, ipv6: netip.MustParseAddr(*i.NetworkInterfaces[0].Ipv6Addresses[0].Ipv6Address)}
	t.Cleanup(func() {
		if h := c.host(m.id); h != nil {
			if err := h.Close(); err != nil {
				t.Error(err)
			}
		}
	})
	eventually(t, "instance "+m.id, func() error {
		now, err := c.account.EC2.DescribeInstances(t.Context(), &ec2.DescribeInstancesInput{InstanceIds: []string{m.id}})
		if err != nil {
			return err
		}
		if s := now.Reservations[0].Instances[0]; s.State.Name != types.InstanceStateNameRunning {
			return fmt.Errorf("it is %s (%v)", s.State.Name, s.StateReason)
		}
		return nil
	})
	m.Instance = c.host(m.id)
	m.sh(fmt.Sprintf("ip -6 address add %s/64 dev eth0 nodad && ip -6 route add default via fe80:ec2::1 dev eth0", m.ipv6))
	return m
}

// try runs a shell script on the machine.
func (m *machine) try(script string) (string, int) {
	m.c.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.c.t.Context()), time.Minute)
	defer cancel()
	r, err := m.Exec(ctx, instance.Command{Argv: []string{"bash", "-c", script}})
	must(m.c.t, err)
	return strings.TrimSpace(string(r.Stdout) + string(r.Stderr)), r.ExitCode
}

func (m *machine) sh(script string) string {
	m.c.t.Helper()
	out, code := m.try(script)
	if code != 0 {
		m.c.t.Fatalf("%s: exit code %d:\n%s", script, code, out)
	}
	return out
}
