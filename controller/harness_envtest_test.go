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
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/controller"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/ec2/account"
	"github.com/branchline-cni/branchline/test/apiserver"
)

const (
	patience = 45 * time.Second // longer than the longest pause between two tries (maxBackoff)
	coolDown = 300 * time.Millisecond
	user     = "system:serviceaccount:kube-system:vpc-resource-controller"
)

// w is the world that all tests share: one API server and one EC2 region. Tests keep apart by namespace and node.
var w struct {
	env     *envtest.Environment
	admin   client.Client
	cfg     *rest.Config // the controller's
	region  *labec2.Region
	url     string
	account account.Account // the operator's
	ec2     *ec2.Client     // account's
	vpc     string
	subnet  string
	group   string
}

func TestMain(m *testing.M) { apiserver.Main(m, world) }

func world(ctx context.Context, m *testing.M) (code int, err error) {
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
		if err := apiserver.Apply(ctx, w.admin, manifest); err != nil {
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
	w.account = account.New(awsConfig(key, secret, "", nil))
	w.ec2 = w.account.EC2
	if w.vpc, err = w.account.VPC(ctx, "192.168.0.0/16"); err != nil {
		return 1, err
	}
	if w.subnet, err = subnet(ctx, "192.168.0.0/19"); err != nil {
		return 1, err
	}
	if w.group, err = w.account.Group(ctx, w.vpc, "POD_SG", "pods"); err != nil {
		return 1, err
	}
	document, err := os.ReadFile("../config/vpc-controller/iam-policy.json")
	if err != nil {
		return 1, err
	}
	if err := role(ctx, "controller", string(document)); err != nil {
		return 1, err
	}
	return m.Run(), nil
}

// role makes an IAM role with one policy.
func role(ctx context.Context, name, document string) error {
	if err := w.account.Role(ctx, name); err != nil {
		return err
	}
	return allow(ctx, name, document)
}

// allow replaces a role's policy.
func allow(ctx context.Context, name, document string) error {
	return w.account.Put(ctx, name, "vpc-controller", document)
}

// as is an EC2 client in a role.
func as(t *testing.T, role string) *ec2.Client {
	t.Helper()
	keys, ok := w.region.RoleCredentials(role, "i-controller")
	if !ok {
		t.Fatalf("no role %s", role)
	}
	return ec2.NewFromConfig(awsConfig(keys.AccessKeyID, keys.SecretAccessKey, keys.Token, nil))
}

func subnet(ctx context.Context, cidr string) (string, error) {
	return w.account.Subnet(ctx, w.vpc, cidr, "")
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
// Every call of EC2 counts, and every write to the API server. Reads of the API server have no effect, so to be killed at
// one is to be killed before the next call that counts, which is to be killed after the one before: no point of its own.
type killer struct {
	mu    sync.Mutex
	n     int // 0: never
	calls []string
	dead  chan struct{}
	ended chan struct{} // closed when the controller has ended
}

// kill cuts the controller off now.
func (k *killer) kill() {
	k.mu.Lock()
	defer k.mu.Unlock()
	close(k.dead)
}

// effects are the calls so far that changed something.
func (k *killer) effects() []string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.calls)
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
	k = &killer{n: n, dead: make(chan struct{}), ended: make(chan struct{})}
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
	go func() {
		done <- controller.Run(ctx, o)
		close(k.ended)
	}()
	stop = sync.OnceValue(func() error { cancel(); return <-done })
	t.Cleanup(func() { stop() })
	return k, stop
}
