//go:build envtest

package controller_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/iam"
	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/controller/trunk"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/policy"
)

const (
	patience = 20 * time.Second
	coolDown = 300 * time.Millisecond
	user     = "system:serviceaccount:kube-system:vpc-resource-controller"
)

// w is the world that all tests share: one API server and one EC2 region. Tests keep apart by namespace and node.
var w struct {
	env    *envtest.Environment
	admin  client.Client
	cfg    *rest.Config // the controller's
	region *labec2.Region
	url    string
	ec2    *ec2.Client // the operator's
	vpc    string
	subnet string
	group  string
}

func TestMain(m *testing.M) {
	code, err := world(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func world(m *testing.M) (code int, err error) {
	ctrl.SetLogger(logr.Discard())
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	w.env = &envtest.Environment{CRDDirectoryPaths: []string{"../config/crd"}, ErrorIfCRDPathMissing: true}
	admin, err := w.env.Start()
	if err != nil {
		return 1, fmt.Errorf("start the API server (KUBEBUILDER_ASSETS=%q): %w", os.Getenv("KUBEBUILDER_ASSETS"), err)
	}
	defer func() { err = errors.Join(err, w.env.Stop()) }()
	scheme, err := controller.Scheme()
	if err != nil {
		return 1, err
	}
	admin.QPS = -1
	if w.admin, err = client.New(admin, client.Options{Scheme: scheme}); err != nil {
		return 1, err
	}
	for _, manifest := range [][]byte{config.ControllerRBAC(), config.AWSNode()} {
		if err := apply(ctx, manifest); err != nil {
			return 1, err
		}
	}
	u, err := w.env.AddUser(envtest.User{Name: user, Groups: []string{"system:serviceaccounts"}}, &rest.Config{QPS: -1})
	if err != nil {
		return 1, err
	}
	w.cfg = u.Config()

	w.region = labec2.New(labec2.Config{Limits: labec2.NoRequestLimits()})
	defer w.region.Close()
	srv := httptest.NewServer(w.region.Handler())
	defer srv.Close()
	w.url = srv.URL
	key, secret := w.region.AdminCredentials()
	operator := awsConfig(key, secret, "", nil)
	w.ec2 = ec2.NewFromConfig(operator)
	v, err := w.ec2.CreateVpc(ctx, &ec2.CreateVpcInput{CidrBlock: awssdk.String("192.168.0.0/16")})
	if err != nil {
		return 1, err
	}
	w.vpc = *v.Vpc.VpcId
	if w.subnet, err = subnet(ctx, "192.168.0.0/19"); err != nil {
		return 1, err
	}
	g, err := w.ec2.CreateSecurityGroup(ctx, &ec2.CreateSecurityGroupInput{VpcId: &w.vpc, GroupName: awssdk.String("POD_SG"), Description: awssdk.String("pods")})
	if err != nil {
		return 1, err
	}
	w.group = *g.GroupId
	document, err := os.ReadFile("../config/vpc-controller/iam-policy.json")
	if err != nil {
		return 1, err
	}
	role := iam.NewFromConfig(operator)
	trust := `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Principal":{"Service":"ec2.amazonaws.com"},"Action":"sts:AssumeRole"}]}`
	if _, err := role.CreateRole(ctx, &iam.CreateRoleInput{RoleName: awssdk.String("controller"), AssumeRolePolicyDocument: &trust}); err != nil {
		return 1, err
	}
	if _, err := role.PutRolePolicy(ctx, &iam.PutRolePolicyInput{RoleName: awssdk.String("controller"), PolicyName: awssdk.String("vpc-controller"), PolicyDocument: awssdk.String(string(document))}); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

func subnet(ctx context.Context, cidr string) (string, error) {
	s, err := w.ec2.CreateSubnet(ctx, &ec2.CreateSubnetInput{VpcId: &w.vpc, CidrBlock: &cidr})
	if err != nil {
		return "", err
	}
	return *s.Subnet.SubnetId, nil
}

func apply(ctx context.Context, manifest []byte) error {
	r := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := r.Decode(o); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if len(o.Object) == 0 {
			continue
		}
		if err := w.admin.Create(ctx, o); client.IgnoreAlreadyExists(err) != nil {
			return fmt.Errorf("create %s %s: %w", o.GetKind(), o.GetName(), err)
		}
	}
}

func awsConfig(key, secret, token string, wrap func(http.RoundTripper) http.RoundTripper) awssdk.Config {
	c := awssdk.Config{
		Region: "us-west-2", BaseEndpoint: &w.url, Retryer: func() awssdk.Retryer { return awssdk.NopRetryer{} },
		Credentials: credentials.NewStaticCredentialsProvider(key, secret, token),
	}
	if wrap != nil {
		c.HTTPClient = &http.Client{Transport: wrap(http.DefaultTransport)}
	}
	return c
}

// killer cuts a controller off the world after its n-th call took effect: the answer is lost, and so is every later call.
// Reads of the API server have no effect, so being killed at one is the same as at the call before it.
type killer struct {
	mu    sync.Mutex
	n     int // 0: never
	calls []string
	dead  chan struct{}
}

var errKilled = errors.New("killed")

type transport struct {
	k    *killer
	next http.RoundTripper
	api  bool
}

func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	name := ""
	switch {
	case !t.api:
		b, err := io.ReadAll(req.Body)
		if err != nil {
			return nil, err
		}
		req.Body = io.NopCloser(bytes.NewReader(b))
		name = "EC2 " + strings.TrimPrefix(strings.Split(string(b), "&")[0], "Action=")
	case req.Method != http.MethodGet && !strings.Contains(req.URL.Path, "/events") && !strings.Contains(req.URL.Path, "/leases"):
		name = req.Method + " " + req.URL.Path
	}
	t.k.mu.Lock()
	defer t.k.mu.Unlock()
	select {
	case <-t.k.dead:
		return nil, errKilled
	default:
	}
	if name == "" {
		t.k.mu.Unlock()
		resp, err := t.next.RoundTrip(req)
		t.k.mu.Lock()
		return resp, err
	}
	// Calls with an effect go one by one, so that "after the n-th" means one state of the world.
	t.k.calls = append(t.k.calls, name)
	resp, err := t.next.RoundTrip(req)
	if len(t.k.calls) == t.k.n {
		close(t.k.dead)
		if err == nil {
			resp.Body.Close()
		}
		return nil, errKilled
	}
	return resp, err
}

// start runs a controller until the returned function is called; that waits for its end.
func start(t *testing.T, n int, change func(*controller.Options)) (k *killer, stop func() error) {
	t.Helper()
	k = &killer{n: n, dead: make(chan struct{})}
	cfg := rest.CopyConfig(w.cfg)
	cfg.Wrap(func(rt http.RoundTripper) http.RoundTripper { return transport{k, rt, true} })
	keys, ok := w.region.RoleCredentials("controller", "i-controller")
	if !ok {
		t.Fatal("no role")
	}
	o := controller.Options{
		Config: cfg, ClusterName: "demo", Log: slog.New(slog.DiscardHandler), CoolDown: func(context.Context) time.Duration { return coolDown },
		Recheck: 100 * time.Millisecond,
		EC2:     ec2.NewFromConfig(awsConfig(keys.AccessKeyID, keys.SecretAccessKey, keys.Token, func(rt http.RoundTripper) http.RoundTripper { return transport{k, rt, false} })),
	}
	if os.Getenv("VERBOSE") != "" {
		o.Log = slog.New(slog.NewTextHandler(os.Stderr, nil))
	}
	if change != nil {
		change(&o)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx, o) }()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return k, stop
}

// eventually waits until the check finds nothing wrong.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// launch starts an instance and registers it as a node, as the agent leaves it: feature asked for, label set.
func launch(t *testing.T, name, instanceType, subnetID string) (instanceID string) {
	t.Helper()
	out, err := w.ec2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		InstanceType: ec2types.InstanceType(instanceType), SubnetId: &subnetID, SecurityGroupIds: []string{w.group},
		MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1), ImageId: awssdk.String("ami-1"),
	})
	must(t, err)
	id := *out.Instances[0].InstanceId
	register(t, name, instanceType, id)
	t.Cleanup(func() {
		ctx := context.Background()
		w.admin.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		w.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	})
	return id
}

func register(t *testing.T, name, instanceType, id string) {
	t.Helper()
	must(t, w.admin.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux", corev1.LabelInstanceTypeStable: instanceType}},
		Spec:       corev1.NodeSpec{ProviderID: "aws:///us-west-2a/" + id},
	}))
}

// ask is what the agent does first.
func ask(t *testing.T, node string) {
	t.Helper()
	eventually(t, "CNINode of "+node, func() error {
		return w.admin.Patch(t.Context(), &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: node}},
			client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"features":[{"name":"SecurityGroupsForPods"}]}}`)))
	})
}

func label(t *testing.T, node string, on bool) {
	t.Helper()
	value := "null"
	if on {
		value = `"true"`
	}
	must(t, w.admin.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"`+trunk.Label+`":`+value+`}}}`))))
}

func ledgerOf(t *testing.T, id string) *ledgerv1.BranchLedger {
	t.Helper()
	var l ledgerv1.BranchLedger
	if err := w.admin.Get(t.Context(), client.ObjectKey{Name: id}, &l); err != nil {
		return nil
	}
	return &l
}

// ready waits for the trunk, then labels the node as the agent does, and waits for the capacity.
func ready(t *testing.T, node, id string, want int64) {
	t.Helper()
	eventually(t, "trunk of "+node, func() error {
		ask(t, node) // again where the CNINode was one of an earlier node of this name
		if l := ledgerOf(t, id); l == nil || l.Spec.TrunkENIID == "" {
			return fmt.Errorf("ledger %+v", l)
		}
		return nil
	})
	label(t, node, true)
	capacity(t, node, want)
}

func capacity(t *testing.T, node string, want int64) {
	t.Helper()
	eventually(t, "capacity of "+node, func() error {
		var n corev1.Node
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
			return err
		}
		c, a := n.Status.Capacity[policy.Resource], n.Status.Allocatable[policy.Resource]
		if c.Value() != want || a.Value() != want {
			return fmt.Errorf("capacity %v, allocatable %v, want %d", c.Value(), a.Value(), want)
		}
		return nil
	})
}

func namespace(t *testing.T, name string) {
	t.Helper()
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	must(t, w.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "allow-rds-access"},
		Spec: v1beta1.SecurityGroupPolicySpec{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "green-pod"}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{w.group}},
		},
	}))
}

// pod creates a pod that asks for a branch ENI, bound to the node unless that is empty.
func pod(t *testing.T, namespace, name, node string) *corev1.Pod {
	t.Helper()
	one := corev1.ResourceList{policy.Resource: resource.MustParse("1")}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "green-pod"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Limits: one, Requests: one}}}},
	}
	must(t, w.admin.Create(t.Context(), p))
	t.Cleanup(func() { w.admin.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	return p
}

func remove(t *testing.T, p *corev1.Pod) {
	t.Helper()
	must(t, client.IgnoreNotFound(w.admin.Delete(t.Context(), p, client.GracePeriodSeconds(0))))
}

func annotated(t *testing.T, p *corev1.Pod) string {
	t.Helper()
	var got corev1.Pod
	eventually(t, "annotation of "+p.Name, func() error {
		if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(p), &got); err != nil {
			return err
		}
		if got.Annotations[policy.Resource] == "" {
			return fmt.Errorf("none; events: %v", events(t, p))
		}
		return nil
	})
	return got.Annotations[policy.Resource]
}

func events(t *testing.T, o client.Object) []string {
	t.Helper()
	var l corev1.EventList
	must(t, w.admin.List(t.Context(), &l))
	var r []string
	for _, e := range l.Items {
		if e.InvolvedObject.UID == o.GetUID() {
			r = append(r, e.Reason+": "+e.Message)
		}
	}
	return r
}

// told waits for an event with the reason that holds all the words.
func told(t *testing.T, o client.Object, reason string, words ...string) {
	t.Helper()
	eventually(t, "event "+reason, func() error {
		all := events(t, o)
	next:
		for _, e := range all {
			if !strings.HasPrefix(e, reason+": ") {
				continue
			}
			for _, word := range words {
				if !strings.Contains(e, word) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("want %q in %q", words, all)
	})
}

// confirm does the node agent's part for one pod.
func confirm(t *testing.T, id string, p *corev1.Pod) {
	t.Helper()
	eventually(t, "confirm "+p.Name, func() error {
		l := ledgerOf(t, id)
		if l == nil {
			return errors.New("no ledger")
		}
		l.Status.Released = append(l.Status.Released, ledgerv1.Released{PodUID: p.UID, ReleasedAt: metav1.NowMicro()})
		return w.admin.Status().Update(t.Context(), l)
	})
}

// inEC2 lists the controller's ENIs of an instance: how many trunks, and the branches.
func inEC2(t *testing.T, id string) (trunks int, branches []ec2types.NetworkInterface) {
	t.Helper()
	var out *ec2.DescribeNetworkInterfacesOutput
	eventually(t, "describe the ENIs of "+id, func() (err error) {
		out, err = w.ec2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{Filters: []ec2types.Filter{
			{Name: awssdk.String("tag:branchline.dev/instance-id"), Values: []string{id}}}})
		return err
	})
	for _, e := range out.NetworkInterfaces {
		if *e.Description == "aws-k8s-trunk-eni" {
			trunks++
		} else {
			branches = append(branches, e)
		}
	}
	return trunks, branches
}
