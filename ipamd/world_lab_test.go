//go:build lab

package ipamd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/lab/artifacts"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/imds"
	"github.com/branchline-cni/branchline/lab/vpc"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/test/apiserver"
)

// metadataDelay is how late IMDS shows an ENI after its attachment.
const metadataDelay = 1500 * time.Millisecond

// w is what all tests share: the agent's executable, one API server and one EC2 region. Each test has an instance.
var w struct {
	binary  string
	env     *envtest.Environment
	admin   client.Client
	cfg     *rest.Config
	region  *labec2.Region
	fabric  *vpc.Fabric
	flows   *text // the VPC's flow log
	plugs   *plugs
	ec2     *ec2.Client
	iam     *iam.Client
	vpc     string
	subnets int    // that nextSubnet has named
	group   string // of all nodes
	letIn   sync.Once
}

func TestMain(m *testing.M) { apiserver.Main(m, world) }

func world(ctx context.Context, m *testing.M) (code int, err error) {
	dir, err := os.MkdirTemp("", "ipamd-")
	if err != nil {
		return 1, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	w.binary = filepath.Join(dir, "aws-k8s-agent")
	if err := built(ctx, w.binary, "ipamd", ""); err != nil {
		return 1, err
	}
	if err := apiserver.Assets(ctx, dir); err != nil {
		return 1, err
	}
	w.env = &envtest.Environment{
		BinaryAssetsDirectory: dir, ErrorIfCRDPathMissing: true,
		CRDDirectoryPaths: []string{"../config/crd/vpcresources.k8s.aws_cninodes.yaml", "../config/crd/crd.k8s.amazonaws.com_eniconfigs.yaml"},
	}
	if w.cfg, err = w.env.Start(); err != nil {
		return 1, fmt.Errorf("start the API server: %w", err)
	}
	defer func() { err = errors.Join(err, w.env.Stop()) }()
	scheme, err := kube.Scheme()
	if err != nil {
		return 1, err
	}
	if err := errors.Join(corev1.AddToScheme(scheme), authenticationv1.AddToScheme(scheme)); err != nil {
		return 1, err
	}
	if w.admin, err = client.New(w.cfg, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	// The agent's ServiceAccount, roles and admission policies are those that users apply.
	if err := apiserver.Apply(ctx, w.admin, config.AWSNode()); err != nil {
		return 1, err
	}
	if err := cloud(ctx); err != nil {
		return 1, err
	}
	defer w.region.Close()
	defer w.fabric.Close()
	return m.Run(), nil
}

// built puts one of our programs at path: the cache's, with the version if one is given.
func built(ctx context.Context, path, program, version string) error {
	cache, err := artifacts.Open()
	if err != nil {
		return err
	}
	var flags []string
	if version != "" {
		flags = append(flags, "-X github.com/branchline-cni/branchline/rpc.Version="+version)
	}
	from, err := cache.Go(ctx, program, "./cmd/"+program, "", flags...)
	if err != nil {
		return fmt.Errorf("build %s: %w", program, err)
	}
	b, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o755)
}

func cloud(ctx context.Context) error {
	w.plugs = &plugs{ns: map[string]*nstest.NS{}, cabled: map[string]bool{}, links: map[string]vpc.Link{}}
	w.flows = &text{}
	w.fabric = vpc.New(vpc.Options{FlowLog: w.flows, FlowInterval: -1, Services: []vpc.Service{
		{Addr: outside.Addr(), Port: outside.Port(), Net: "tcp", ServeTCP: func(l net.Listener, _ string) { tell(l) }},
	}})
	w.region = labec2.New(labec2.Config{Limits: labec2.NoRequestLimits(), Instances: w.plugs, OnChange: w.fabric.Apply, MetadataDelay: metadataDelay})
	srv := httptest.NewServer(w.region.Handler())
	context.AfterFunc(ctx, srv.Close)
	key, secret := w.region.AdminCredentials()
	operator := awssdk.Config{Region: "us-west-2", BaseEndpoint: &srv.URL, Credentials: credentials.NewStaticCredentialsProvider(key, secret, "")}
	w.ec2, w.iam = ec2.NewFromConfig(operator), iam.NewFromConfig(operator)
	v, err := w.ec2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("192.168.0.0/16")})
	if err != nil {
		return err
	}
	w.vpc = *v.Vpc.VpcId
	g, err := w.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: &w.vpc, GroupName: awssdk.String("nodes"), Description: awssdk.String("nodes")})
	if err != nil {
		return err
	}
	w.group = *g.GroupId
	return nil
}

// plugs makes attachments real: a TAP in the instance's namespace, and for some its cable to the VPC.
type plugs struct {
	mu     sync.Mutex
	next   *nstest.NS // of the instance that is launched
	cable  bool       // it is to have
	ns     map[string]*nstest.NS
	cabled map[string]bool // instances
	links  map[string]vpc.Link
}

func (p *plugs) Launch(ctx context.Context, i labec2.InstanceSpec) error {
	p.mu.Lock()
	p.ns[i.ID], p.cabled[i.ID] = p.next, p.cable
	p.mu.Unlock()
	return p.Attach(ctx, i.ID, i.Primary)
}

func (p *plugs) plugged(eniID string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.links[eniID] != nil
}

func (p *plugs) Attach(_ context.Context, instanceID string, e labec2.AttachmentSpec) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	l, err := vpc.TAPLink(p.ns[instanceID].Path(), fmt.Sprintf("ens%d", 5+20*e.NetworkCard+e.DeviceIndex), e.MAC, 1500)
	if err == nil {
		p.links[e.ENIID] = l
		if p.cabled[instanceID] {
			return w.fabric.AddPort(e.ENIID, l)
		}
		go func() { // what the instance sends goes nowhere
			buf := make([]byte, 1<<14)
			for {
				if _, err := l.ReadFrame(buf); err != nil {
					return
				}
			}
		}()
	}
	return err
}

func (p *plugs) Detach(_ context.Context, instanceID, eniID string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.links[eniID]
	delete(p.links, eniID)
	if p.cabled[instanceID] {
		return w.fabric.RemovePort(eniID) // which closes the link
	}
	if l == nil {
		return nil
	}
	return l.Close()
}

func (p *plugs) Terminate(context.Context, string) error { return nil }

// role makes a role for nodes with these policies, managed by ARN or inline as JSON.
func role(t *testing.T, name string, policies ...string) {
	t.Helper()
	ctx := t.Context()
	trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	_, err := w.iam.CreateRole(ctx, &iam.CreateRoleInput{RoleName: &name, AssumeRolePolicyDocument: &trust})
	must(t, err)
	_, err = w.iam.CreateInstanceProfile(ctx, &iam.CreateInstanceProfileInput{InstanceProfileName: &name})
	must(t, err)
	_, err = w.iam.AddRoleToInstanceProfile(ctx, &iam.AddRoleToInstanceProfileInput{InstanceProfileName: &name, RoleName: &name})
	must(t, err)
	for _, p := range policies {
		if strings.HasPrefix(p, "arn:") {
			_, err = w.iam.AttachRolePolicy(ctx, &iam.AttachRolePolicyInput{RoleName: &name, PolicyArn: &p})
		} else {
			_, err = w.iam.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: &name, PolicyName: awssdk.String("inline"), PolicyDocument: &p})
		}
		must(t, err)
	}
}

const cniPolicy = "arn:aws:iam::aws:policy/AmazonEKS_CNI_Policy"

// launch runs an m5.large in a subnet of its own, and gives its namespace the three things that an instance can reach:
// the metadata service, EC2 and the API server.
func launch(t *testing.T, role, subnet string) *node {
	t.Helper()
	return launchA(t, ec2types.InstanceTypeM5Large, role, subnet)
}

// launchA is launch for any instance type.
func launchA(t *testing.T, kind ec2types.InstanceType, role, subnet string) *node {
	t.Helper()
	n := &node{t: t, ns: nstest.New(t), dir: t.TempDir()}
	s, err := w.ec2.CreateSubnet(t.Context(), &ec2.CreateSubnetInput{VpcId: &w.vpc, CidrBlock: &subnet})
	must(t, err)
	n.subnet = *s.Subnet.SubnetId
	w.plugs.next = n.ns
	out, err := w.ec2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		ImageId: awssdk.String("ami-0b1abc0000000lab1"), InstanceType: kind, MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1),
		SubnetId: &n.subnet, SecurityGroupIds: []string{w.group}, IamInstanceProfile: &ec2types.IamInstanceProfileSpecification{Name: &role},
	})
	must(t, err)
	n.id, n.name = *out.Instances[0].InstanceId, "node-"+*out.Instances[0].InstanceId
	eventually(t, "the instance runs", func() bool {
		i, ok := w.region.Metadata(n.id).Instance()
		return ok && len(i.Interfaces) == 1 && w.plugs.plugged(*out.Instances[0].NetworkInterfaces[0].NetworkInterfaceId)
	})
	n.ns.Up(t, "ens5")
	n.ns.Address(t, "lo", "169.254.169.254/32")
	n.serve("169.254.169.254:80", imds.Handler(w.region.Metadata(n.id), nil))
	n.endpoint = "http://" + n.serve("127.0.0.1:0", w.region.Handler())
	n.forward(w.cfg.Host)
	return n
}

// nextSubnet names a subnet that no other test has, however often one is run.
func nextSubnet() string {
	w.subnets++
	return fmt.Sprintf("192.168.%d.0/24", 100+w.subnets)
}

// letIn lets what the VPC sends into the nodes' group: on AWS a group lets nothing in by itself.
func letIn(t *testing.T) {
	t.Helper()
	w.letIn.Do(func() {
		_, err := w.ec2.AuthorizeSecurityGroupIngress(t.Context(), &ec2.AuthorizeSecurityGroupIngressInput{GroupId: &w.group, IpPermissions: []ec2types.IpPermission{
			{IpProtocol: awssdk.String("-1"), IpRanges: []ec2types.IpRange{{CidrIp: awssdk.String("192.168.0.0/16")}}},
		}})
		must(t, err)
	})
}

func (n *node) listen(addr string) net.Listener {
	n.t.Helper()
	var l net.Listener
	n.ns.Do(n.t, func() (err error) {
		l, err = net.Listen("tcp4", addr)
		return err
	})
	n.t.Cleanup(func() { l.Close() })
	return l
}

func (n *node) serve(addr string, h http.Handler) string {
	n.t.Helper()
	l := n.listen(addr)
	s := &http.Server{Handler: h, ReadHeaderTimeout: time.Second}
	go s.Serve(l)
	n.t.Cleanup(func() { s.Close() })
	return l.Addr().String()
}

// forward brings the API server into the namespace.
func (n *node) forward(host string) {
	n.t.Helper()
	l := n.listen("127.0.0.1:0")
	target := strings.TrimSuffix(strings.TrimPrefix(host, "https://"), "/")
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer in.Close()
				out, err := net.Dial("tcp4", target)
				if err != nil {
					return
				}
				defer out.Close()
				go func() {
					io.Copy(out, in)
					out.Close()
				}()
				io.Copy(in, out)
			}()
		}
	}()
	n.api = "https://" + l.Addr().String()
}

// login writes a kubeconfig with the token that the kubelet would get for the node's aws-node pod: it holds the
// ServiceAccount's rights and the node's name, and nothing else.
func (n *node) login() {
	n.t.Helper()
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", GenerateName: "aws-node-"},
		Spec:       corev1.PodSpec{NodeName: n.name, ServiceAccountName: "aws-node", HostNetwork: true, Containers: []corev1.Container{{Name: "aws-node", Image: "i"}}},
	}
	must(n.t, w.admin.Create(n.t.Context(), p))
	request := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "aws-node"}}
	must(n.t, w.admin.SubResource("token").Create(n.t.Context(), account, request))
	c := clientcmdapi.NewConfig()
	c.Clusters["lab"] = &clientcmdapi.Cluster{Server: n.api, CertificateAuthorityData: w.cfg.CAData}
	c.AuthInfos["aws-node"] = &clientcmdapi.AuthInfo{Token: request.Status.Token}
	c.Contexts["lab"] = &clientcmdapi.Context{Cluster: "lab", AuthInfo: "aws-node"}
	c.CurrentContext = "lab"
	must(n.t, clientcmd.WriteToFile(*c, filepath.Join(n.dir, "kubeconfig")))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(40 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 40 s: %s", what)
		}
	}
}
