// Package controller wires the control plane together: the manager, its caches and indexes, the reconcilers of trunk and
// branch, and the webhooks of admission. What each of them does is in its own package.
package controller

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/uuid"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	"sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	ctrladmission "sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/reconnect"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/controller/admission"
	"github.com/branchline-cni/branchline/controller/branch"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Lease is what leaders are elected by, in kube-system; other controllers of this kind use the same.
const Lease = "cp-vpc-resource-controller"

// Deadlines of API calls; EC2's are in package cloud.
const apiTimeout = 30 * time.Second

// Options of a controller. Config, EC2 and ClusterName are required.
type Options struct {
	Config      *rest.Config
	EC2         cloud.EC2
	ClusterName string
	Log         *slog.Logger

	LeaderElect bool
	// MetricsAddr and HealthAddr are host:port, or empty for none.
	MetricsAddr, HealthAddr string
	// Webhooks says where the API server reaches the webhooks; nil runs none.
	Webhooks *Webhooks

	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// CoolDown overrides the ConfigMap; nil means to read it.
	CoolDown func(context.Context) time.Duration
	// Lease is how long a leader that died keeps others from leading; zero means 15 s.
	Lease time.Duration
	// SweepEvery and Recheck default to those of packages branch and trunk.
	SweepEvery, Recheck time.Duration
}

// Webhooks says where the webhooks listen and how the API server reaches them: by URL or by Service (namespace/name).
type Webhooks struct {
	URL, Service string
	BindAddress  string
	Port         int
}

// hosts are the names that the serving certificate has to carry.
func (w *Webhooks) hosts() ([]string, error) {
	if w.Service != "" {
		namespace, name, ok := cutService(w.Service)
		if !ok {
			return nil, fmt.Errorf("webhook service %q: want namespace/name", w.Service)
		}
		return []string{fmt.Sprintf("%s.%s.svc", name, namespace)}, nil
	}
	u, err := url.Parse(w.URL)
	if err != nil || u.Scheme != "https" || u.Hostname() == "" {
		return nil, fmt.Errorf("webhook URL %q: want https://host[:port]", w.URL)
	}
	return []string{u.Hostname()}, nil
}

// Scheme knows the types that the controller reads and writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1beta1.AddToScheme, v1alpha1.AddToScheme, ledgerv1.AddToScheme, eniconfigv1.AddToScheme} {
		if err := add(s); err != nil {
			return nil, fmt.Errorf("register types: %w", err)
		}
	}
	return s, nil
}

// Run runs the controller until the context ends, which is no error, whatever it was doing. Error: admission.ErrHosted
// where the cluster has a hosted control plane.
func Run(ctx context.Context, o Options) error {
	err := run(ctx, o)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func run(ctx context.Context, o Options) error {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.Default()
	}
	if o.Lease == 0 {
		o.Lease = 15 * time.Second
	}
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	scheme, err := Scheme()
	if err != nil {
		return err
	}
	cfg := rest.CopyConfig(o.Config)
	if cfg.QPS == 0 {
		cfg.QPS, cfg.Burst = 100, 200
	}
	client_, err := direct(cfg, scheme)
	if err != nil {
		return err
	}
	if err := o.alone(ctx, client_); err != nil {
		return err
	}
	mgrOptions := manager.Options{
		Scheme: scheme, Logger: logr.FromSlogHandler(o.Log.Handler()),
		LeaderElection: o.LeaderElect, LeaderElectionID: Lease, LeaderElectionNamespace: "kube-system", LeaderElectionReleaseOnCancel: true,
		LeaseDuration: ptr.To(o.Lease), RenewDeadline: ptr.To(o.Lease * 2 / 3), RetryPeriod: ptr.To(o.Lease * 2 / 15),
		Metrics: server.Options{BindAddress: none(o.MetricsAddr)}, HealthProbeBindAddress: none(o.HealthAddr),
		Cache: cache.Options{
			DefaultTransform: cache.TransformStripManagedFields(), ByObject: cached(),
			NewInformer: reconnect.New(o.Log).NewInformer,
		},
		Client: client.Options{Cache: &client.CacheOptions{DisableFor: []client.Object{&corev1.Secret{}, &corev1.ServiceAccount{}}}},
		// A retired process may start a second manager (tests do), and metrics are kept per process.
		Controller: config.Controller{SkipNameValidation: ptr.To(true)},
	}
	var certs *admission.Certificates
	if o.Webhooks != nil {
		if certs, err = o.certificates(ctx, client_); err != nil {
			return err
		}
		pair, err := certs.TLS()
		if err != nil {
			return err
		}
		mgrOptions.WebhookServer = webhook.NewServer(webhook.Options{Host: o.Webhooks.BindAddress, Port: o.Webhooks.Port, TLSOpts: []func(*tls.Config){func(c *tls.Config) {
			c.MinVersion = tls.VersionTLS12
			c.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return pair, nil }
		}}})
	}
	mgr, err := manager.New(cfg, mgrOptions)
	if err != nil {
		return fmt.Errorf("make the manager: %w", err)
	}
	if err := branch.Index(ctx, mgr.GetFieldIndexer()); err != nil {
		return err
	}
	if o.Webhooks != nil {
		if err := o.serveWebhooks(ctx, mgr, certs); err != nil {
			return err
		}
	}
	if err := o.reconcilers(ctx, mgr); err != nil {
		return err
	}
	if err := watchHosted(mgr, &admission.StandAside{Client: mgr.GetClient(), Live: mgr.GetAPIReader(), Log: o.Log, Now: o.Now, Stop: stop}); err != nil {
		return fmt.Errorf("watch for the hosted control plane: %w", err)
	}
	if err := mgr.AddHealthzCheck("ping", healthz.Ping); err != nil {
		return fmt.Errorf("add the health check: %w", err)
	}
	ready := healthz.Ping
	if o.Webhooks != nil {
		ready = mgr.GetWebhookServer().StartedChecker()
	}
	if err := mgr.AddReadyzCheck("webhooks", ready); err != nil {
		return fmt.Errorf("add the readiness check: %w", err)
	}
	if err := mgr.Start(ctx); err != nil {
		return fmt.Errorf("run the controller: %w", err)
	}
	if cause := context.Cause(ctx); cause != nil && cause != context.Canceled {
		return cause
	}
	return nil
}

// alone returns admission.ErrHosted, and says so by an event, where the cluster has a hosted control plane. Our webhooks are taken away
// there.
func (o *Options) alone(ctx context.Context, c client.Client) error {
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	err := admission.Hosted(ctx, c)
	var hosted *admission.HostedError
	if errors.As(err, &hosted) {
		// Those of an earlier run, which ended before it could, or that a backup has brought back.
		if err := admission.Withdraw(ctx, c); err != nil {
			return errors.Join(hosted, fmt.Errorf("take our webhook configurations away: %w", err))
		}
		if err := admission.TellHosted(ctx, c, hosted, o.Now()); err != nil {
			o.Log.WarnContext(ctx, "nobody was told that this controller stands aside", "error", err)
		}
	}
	return err
}

func (o *Options) certificates(ctx context.Context, c client.Client) (*admission.Certificates, error) {
	hosts, err := o.Webhooks.hosts()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	return admission.Load(ctx, c, c, hosts, o.Now())
}

func (o *Options) serveWebhooks(ctx context.Context, mgr manager.Manager, certs *admission.Certificates) error {
	// Replicas that don't lead serve too, so the policies are watched from the start, not by the reconcilers alone.
	policies, err := mgr.GetCache().GetInformer(ctx, &v1beta1.SecurityGroupPolicy{}, cache.BlockUntilSynced(false))
	if err != nil {
		return fmt.Errorf("watch policies: %w", err)
	}
	// Of all that is cached webhooks need these alone: pods of the whole cluster take longer, and who starts to lead watches more.
	synced := func(ctx context.Context) bool {
		return policies.HasSynced() || toolscache.WaitForCacheSync(ctx.Done(), policies.HasSynced)
	}
	if err := mgr.AddReadyzCheck("policies", func(*http.Request) error {
		if !policies.HasSynced() {
			return errors.New("the SecurityGroupPolicies are still being read")
		}
		return nil
	}); err != nil {
		return fmt.Errorf("add the readiness check: %w", err)
	}
	decoder := ctrladmission.NewDecoder(mgr.GetScheme())
	s := mgr.GetWebhookServer()
	s.Register(admission.PathMutatePod, admission.WhenSynced(synced, &webhook.Admission{Handler: &admission.MutatePod{
		Policies: mgr.GetClient(), Live: mgr.GetAPIReader(), Decoder: decoder, Log: o.Log,
	}}))
	s.Register(admission.PathValidatePod, &webhook.Admission{Handler: &admission.ValidatePod{Policies: mgr.GetClient(), Live: mgr.GetAPIReader(), Decoder: decoder}})
	s.Register(admission.PathValidateBind, &webhook.Admission{Handler: &admission.ValidateBinding{}})
	s.Register(admission.PathValidateNode, &webhook.Admission{Handler: &admission.ValidateNode{}})
	return watchConfigs(mgr, &admission.Configs{
		Client: mgr.GetClient(), Live: mgr.GetAPIReader(), URL: o.Webhooks.URL, Service: o.Webhooks.Service, CA: certs.CA,
		Log: o.Log,
	})
}

func (o *Options) reconcilers(ctx context.Context, mgr manager.Manager) error {
	c := &cloud.Client{EC2: o.EC2, ClusterName: o.ClusterName}
	ledgers := &ledger.Store{Reader: mgr.GetAPIReader(), Writer: mgr.GetClient()}
	said := &events.Recorder{Recorder: mgr.GetEventRecorderFor("vpc-resource-controller"), Now: o.Now}
	coolDown := o.CoolDown
	if coolDown == nil {
		coolDown = (&branch.CoolDown{Read: mgr.GetClient(), Events: said, Log: o.Log}).Get
	}
	w := wiring{mgr: mgr, cloud: c, ledgers: ledgers, events: said, coolDown: coolDown, o: o,
		claim: func() string { return string(uuid.NewUUID()) }}
	return w.add(ctx)
}

// direct makes a client without a cache, for before the caches run.
func direct(cfg *rest.Config, scheme *runtime.Scheme) (client.Client, error) {
	httpClient, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	mapper, err := apiutil.NewDynamicRESTMapper(cfg, httpClient)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	c, err := client.New(cfg, client.Options{Scheme: scheme, Mapper: mapper, HTTPClient: httpClient})
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	return c, nil
}

func none(addr string) string {
	if addr == "" {
		return "0"
	}
	return addr
}
