package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/instance"
)

// The addresses of a cluster that nobody needs to choose.
const (
	apiPort       = 6443
	etcdPort      = 2379
	kcmPort       = 10257
	schedulerPort = 10259

	clusterName = "branchline"
)

// readyWithin bounds the wait for each program of the control plane: it takes seconds on an idle machine.
const readyWithin = 2 * time.Minute

// Component names a program of the control plane.
type Component string

const (
	Etcd              Component = "etcd"
	APIServer         Component = "kube-apiserver"
	ControllerManager Component = "kube-controller-manager"
	Scheduler         Component = "kube-scheduler"
)

// Components are the programs of a control plane in the order in which they start.
func Components() []Component { return []Component{Etcd, APIServer, ControllerManager, Scheduler} }

// ControlPlaneConfig says what StartControlPlane needs.
type ControlPlaneConfig struct {
	// Dir holds keys, configuration and etcd's data. The Machine sees it under the same path.
	Dir string
	// Hyperkube is the multi-call binary of lab/kube/hyperkube; the Machine sees it under the same path.
	Hyperkube string
	// Address is where nodes and pods reach the API server: an address of the Machine's ENI. With an IPv6 one the cluster
	// is an IPv6 cluster: its Services' addresses are of that family, and its nodes' have to be.
	Address netip.Addr
	// NetNS is the path of the Machine's network namespace; empty means this process's own.
	NetNS string
	// Listen is where this machine reaches the API server. The default is 127.0.0.1 and a free port.
	Listen string
	Log    *slog.Logger
}

// ControlPlane is a running Kubernetes control plane.
type ControlPlane struct {
	cfg        ControlPlaneConfig
	machine    Machine
	log        *slog.Logger
	ca         *authority
	components map[Component]*component
	forwarder  *Forwarder
	client     *http.Client // into the Machine's namespace, as administrator
}

// StartControlPlane starts etcd, the API server, the controller manager and the scheduler on the Machine and returns
// when all of them are ready. The programs live until Stop, or as long as the Machine.
func StartControlPlane(ctx context.Context, m Machine, cfg ControlPlaneConfig) (*ControlPlane, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Listen == "" {
		cfg.Listen = "127.0.0.1:0"
	}
	dir, err := filepath.Abs(cfg.Dir)
	if err != nil {
		return nil, fmt.Errorf("find the control plane's folder %s: %w", cfg.Dir, err)
	}
	cfg.Dir = dir
	if err := checkAddress(cfg.Address); err != nil {
		return nil, fmt.Errorf("start the control plane: %w", err)
	}
	c := &ControlPlane{cfg: cfg, machine: m, log: cfg.Log}
	if err := c.prepare(); err != nil {
		return nil, err
	}
	if c.forwarder, err = Forward(cfg.Listen, cfg.NetNS, fmt.Sprintf("127.0.0.1:%d", apiPort), cfg.Log); err != nil {
		return nil, err
	}
	err = c.start(ctx)
	if err == nil {
		err = c.Apply(ctx, bootstrapManifest)
	}
	if err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if stopErr := c.Stop(stopCtx); stopErr != nil {
			c.log.Error("stop the control plane that did not start", "error", stopErr)
		}
		return nil, err
	}
	return c, nil
}

func (c *ControlPlane) start(ctx context.Context) error {
	server := "https://" + c.forwarder.Addr()
	admin := subject{user: "kubernetes-admin", groups: []string{"system:masters"}}
	if err := c.writeKubeconfig(c.Kubeconfig(), server, admin); err != nil {
		return err
	}
	for _, name := range Components() {
		if err := c.components[name].start(ctx); err != nil {
			return err
		}
		// etcd must answer before the API server starts, and that before its clients: so nobody backs off.
		if name == Etcd || name == APIServer {
			if err := c.WaitReady(ctx, name); err != nil {
				return err
			}
		}
	}
	for _, name := range []Component{ControllerManager, Scheduler} {
		if err := c.WaitReady(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Server is the API server's URL as nodes and pods reach it.
func (c *ControlPlane) Server() string {
	return "https://" + net.JoinHostPort(c.cfg.Address.String(), fmt.Sprint(apiPort))
}

// LocalServer is the API server's URL on this machine.
func (c *ControlPlane) LocalServer() string { return "https://" + c.forwarder.Addr() }

// Kubeconfig is the path of the administrator's kubeconfig for use on this machine.
func (c *ControlPlane) Kubeconfig() string { return filepath.Join(c.cfg.Dir, "admin.kubeconfig") }

// WriteKubeconfig writes a kubeconfig for a new client certificate of user in groups. It is for use on the control
// plane's own instance, over loopback.
func (c *ControlPlane) WriteKubeconfig(path, user string, groups ...string) error {
	return c.writeKubeconfig(path, c.loopbackServer(), subject{user: user, groups: groups})
}

func (c *ControlPlane) writeKubeconfig(path, server string, s subject) error {
	b, err := c.ca.kubeconfig(clusterName, server, s)
	if err != nil {
		return err
	}
	return writeFile(path, b, 0o600)
}

func (c *ControlPlane) loopbackServer() string { return fmt.Sprintf("https://127.0.0.1:%d", apiPort) }

// Kill ends a component with SIGKILL and returns when it is gone.
func (c *ControlPlane) Kill(ctx context.Context, name Component) error {
	p, err := c.component(name)
	if err != nil {
		return err
	}
	return p.stop(ctx, syscall.SIGKILL)
}

// Start starts a component that was killed. It returns as soon as the program runs; see WaitReady.
func (c *ControlPlane) Start(ctx context.Context, name Component) error {
	p, err := c.component(name)
	if err != nil {
		return err
	}
	return p.start(ctx)
}

// Restart kills a component with SIGKILL, starts it again and waits until it is ready.
func (c *ControlPlane) Restart(ctx context.Context, name Component) error {
	if err := c.Kill(ctx, name); err != nil {
		return err
	}
	if err := c.Start(ctx, name); err != nil {
		return err
	}
	return c.WaitReady(ctx, name)
}

// WaitReady returns once the component answers its readiness check.
func (c *ControlPlane) WaitReady(ctx context.Context, name Component) error {
	p, err := c.component(name)
	if err != nil {
		return err
	}
	url := map[Component]string{
		Etcd:              fmt.Sprintf("http://127.0.0.1:%d/readyz", etcdPort),
		APIServer:         c.loopbackServer() + "/readyz",
		ControllerManager: fmt.Sprintf("https://127.0.0.1:%d/healthz", kcmPort),
		Scheduler:         fmt.Sprintf("https://127.0.0.1:%d/readyz", schedulerPort),
	}[name]
	ctx, cancel := context.WithTimeoutCause(ctx, readyWithin, fmt.Errorf("it took longer than %s", readyWithin))
	defer cancel()
	return p.await(ctx, 100*time.Millisecond, func(ctx context.Context) error { return c.get(ctx, url) })
}

func (c *ControlPlane) component(name Component) (*component, error) {
	p, ok := c.components[name]
	if !ok {
		return nil, fmt.Errorf("%q is not a program of the control plane; they are %v", name, Components())
	}
	return p, nil
}

// get asks a URL in the Machine's network namespace and wants the answer 200.
func (c *ControlPlane) get(ctx context.Context, url string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
	if err != nil {
		return fmt.Errorf("ask %s: %w", url, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("ask %s: %s: %s", url, resp.Status, strings.TrimSpace(string(body)))
	}
	return nil
}

// Stop ends the programs, the last started first, and the forwarder.
func (c *ControlPlane) Stop(ctx context.Context) error {
	var first error
	all := Components()
	for i := len(all) - 1; i >= 0; i-- {
		// etcd loses nothing, and nobody needs the data any more: no grace.
		if err := c.components[all[i]].stop(ctx, syscall.SIGKILL); err != nil && first == nil {
			first = err
		}
	}
	if err := c.forwarder.Close(); err != nil && first == nil {
		first = err
	}
	c.client.CloseIdleConnections()
	return first
}

func (c *ControlPlane) executable(name string) string {
	return filepath.Join(c.cfg.Dir, "bin", name)
}

func newClient(ca *authority, netnsPath string) (*http.Client, error) {
	pair, err := ca.issue(subject{user: "lab-readiness", groups: []string{"system:masters"}})
	if err != nil {
		return nil, err
	}
	cert, err := tls.X509KeyPair(pair.cert, pair.key)
	if err != nil {
		return nil, fmt.Errorf("load the readiness check's certificate: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	return &http.Client{Transport: &http.Transport{
		DialContext:       DialIn(netnsPath),
		TLSClientConfig:   &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{cert}, MinVersion: tls.VersionTLS12},
		DisableKeepAlives: true, // a killed program must not be asked over an old connection
	}}, nil
}

// prepare makes keys, configuration and executables, and the components that use them.
func (c *ControlPlane) prepare() error {
	names := []string{"kubectl"}
	for _, n := range Components() {
		names = append(names, string(n))
	}
	if err := linkExecutables(filepath.Join(c.cfg.Dir, "bin"), c.cfg.Hyperkube, names); err != nil {
		return err
	}
	if err := os.MkdirAll(c.path("etcd"), 0o700); err != nil {
		return fmt.Errorf("make etcd's folder: %w", err)
	}
	if err := c.writeKeys(); err != nil {
		return err
	}
	var err error
	if c.client, err = newClient(c.ca, c.cfg.NetNS); err != nil {
		return err
	}
	c.components = map[Component]*component{}
	for name, flags := range c.flags() {
		c.components[name] = &component{
			name: string(name), machine: c.machine, log: c.log,
			command: instance.Command{Argv: append([]string{c.executable(string(name))}, flags...), Dir: c.cfg.Dir},
		}
	}
	return nil
}

func (c *ControlPlane) path(elem ...string) string {
	return filepath.Join(append([]string{c.cfg.Dir}, elem...)...)
}
