package lab

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/branchline-cni/branchline/lab/ec2"
	"github.com/branchline-cni/branchline/lab/ec2/account"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/kube"
	"github.com/branchline-cni/branchline/lab/vpc"
)

// Options of a lab.
type Options struct {
	// Dir holds everything that the lab writes. It must be empty or not exist; Down leaves it to the caller.
	Dir string
	// EvidenceDir gets the flow log, the list of drops, the trunk's pcap and the API's audit log. Default: Dir/evidence.
	EvidenceDir string
	Log         *slog.Logger
	// Progress gets a line for each step of the set-up.
	Progress io.Writer
	// Controller says how vpc-controller runs. Default: Hosted.
	Controller ControllerMode
	// OneNode leaves the t3.medium out and makes the m5.large share this machine's kernel: up in a third of the time, but
	// branch pods are wired only where that kernel has 802.1Q.
	OneNode bool
	// Containerd2 has the nodes run containerd 2, which runs the conflist at CNI 1.1.0, in place of Debian's 1.6.
	Containerd2 bool
	// IPv6 makes it an IPv6 cluster: nodes, pods and Services have IPv6 addresses, and aws-node is told so.
	IPv6 bool
	// AgentEnv are further variables of the DaemonSet aws-node, as NAME=value.
	AgentEnv []string
}

// Lab is a running lab.
type Lab struct {
	Region  *ec2.Region
	Fabric  *vpc.Fabric
	Network Network

	ControlPlaneMachine Machine
	Node                Machine // m5.large, a VM
	SmallNode           Machine // t3.medium, a namespace instance

	opt   Options
	log   *slog.Logger
	parts parts
	cloud *cloud
	aws   awsClients
	http  *http.Server
	// endpoint is the cloud's API on this machine, for the operator's programs.
	endpoint string

	kube       *kube.ControlPlane
	controller *supervised
	began      time.Time

	changes atomic.Uint64

	mu    sync.Mutex
	nodes map[string]*kube.Node   // by instance id
	imds  map[string]http.Handler // by instance id
	names map[string][]netip.Addr // the VPC's private DNS zone
	files []io.Closer
	dbLog string
}

// step is one of a lab's set-up.
type step struct {
	title string
	run   func(context.Context) error
}

// steps are the set-up. A Deployment needs nodes to run on.
func (l *Lab) steps() []step {
	steps := []step{
		{"find or build what the lab runs (Kubernetes takes 10 minutes, once)", l.prepare},
		{"start the cloud: EC2, IAM, STS, IMDS and the VPC's data plane", l.startCloud},
		{"make the VPC, its subnets and groups, and the roles", l.makeAccount},
		{"start the control plane: etcd, API server, scheduler, controller manager", l.startControlPlane},
	}
	hosted := step{"start vpc-controller next to it", l.startController}
	deployed := step{"install vpc-controller as a Deployment, with config/vpc-controller/iam-policy.json in the nodes' role", l.deployController}
	nodes := step{"launch an m5.large (a virtual machine) and a t3.medium, and make them nodes", l.startNodes}
	if l.opt.OneNode {
		nodes.title = "launch an m5.large (a namespace of this machine) and make it a node"
	}
	if l.opt.Controller == Deployment {
		steps = append(steps, nodes, deployed)
	} else {
		steps = append(steps, hosted, nodes)
	}
	return append(steps, step{"install aws-node and CoreDNS", l.installAddons})
}

// Up makes a lab: the cloud, a cluster of one m5.large and one t3.medium, and Branchline on it with ENABLE_POD_ENI off.
// If it fails, nothing is left but files in Options.Dir.
func Up(ctx context.Context, o Options) (*Lab, error) {
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	if o.Progress == nil {
		o.Progress = io.Discard
	}
	if o.EvidenceDir == "" {
		o.EvidenceDir = filepath.Join(o.Dir, "evidence")
	}
	l := &Lab{opt: o, log: o.Log, began: time.Now(), names: map[string][]netip.Addr{}, imds: map[string]http.Handler{}, nodes: map[string]*kube.Node{}}
	for _, s := range l.steps() {
		l.progress("%s", s.title)
		if err := s.run(ctx); err != nil {
			err = fmt.Errorf("%s: %w", s.title, err)
			if kerr := l.KeepLogs(filepath.Join(o.EvidenceDir, "logs")); kerr != nil {
				l.log.Warn("keep the logs of a lab that did not start", "error", kerr)
			}
			dctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
			defer cancel()
			return nil, errors.Join(err, l.Down(dctx))
		}
	}
	l.progress("the lab is up")
	return l, nil
}

func (l *Lab) progress(format string, a ...any) {
	fmt.Fprintf(l.opt.Progress, "[%4.0f s] %s\n", time.Since(l.began).Seconds(), fmt.Sprintf(format, a...))
}

// Dir is where the lab keeps its files.
func (l *Lab) Dir() string { return l.opt.Dir }

// Account is the operator's hand in the region, with the administrator's keys.
func (l *Lab) Account() account.Account { return l.aws.Account }

// BinDir holds kubectl and aws, each for this lab.
func (l *Lab) BinDir() string { return filepath.Join(l.opt.Dir, "bin") }

const auditFile = "cloudtrail.jsonl"

func (l *Lab) startCloud(context.Context) error {
	if err := os.MkdirAll(l.opt.EvidenceDir, 0o755); err != nil {
		return fmt.Errorf("make the evidence folder: %w", err)
	}
	audit, err := l.evidenceFile(auditFile)
	if err != nil {
		return err
	}
	flows, err := l.evidenceFile("flow.log")
	if err != nil {
		return err
	}
	l.cloud = &cloud{log: l.log, start: l.startInstance, hosts: map[string]instance.Instance{}, owner: map[string]string{}}
	l.Fabric = vpc.New(vpc.Options{
		Log: l.log, FlowLog: flows, FlowInterval: 10 * time.Second, AccountID: AccountID,
		Services: l.services(), Domain: Region + ".compute.internal", Pcap: l.pcap,
	})
	l.cloud.fabric = l.Fabric
	l.Region = ec2.New(ec2.Config{
		Region: Region, AccountID: AccountID, OnChange: l.changed, Instances: l.cloud, Log: l.log, Audit: audit,
		Seed: l.opt.Dir, // two labs on one machine must not have instances of one id: cgroups are named by it
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the operator's AWS programs: %w", err)
	}
	l.endpoint = "http://" + listener.Addr().String()
	l.http = &http.Server{Handler: l.Region.Handler(), ReadHeaderTimeout: 10 * time.Second}
	go func() {
		if err := l.http.Serve(listener); err != nil && !errors.Is(err, http.ErrServerClosed) {
			l.log.Error("the cloud's API on this machine ended", "error", err)
		}
	}()
	id, secret := l.Region.AdminCredentials()
	l.aws = newAWSClients(l.endpoint, id, secret)
	return l.writeAWS(id, secret)
}

// changed has the data plane follow the cloud, and counts.
func (l *Lab) changed(t *vpc.Topology) {
	l.Fabric.Apply(t)
	l.changes.Add(1)
}

// Changes is how often the cloud has changed until now: what its API says of ENIs, groups and instances is the same as long
// as this is.
func (l *Lab) Changes() uint64 { return l.changes.Load() }

func (l *Lab) makeAccount(ctx context.Context) (err error) {
	if err := l.aws.makeRoles(ctx, l.opt.IPv6); err != nil {
		return err
	}
	l.Network, err = l.aws.makeNetwork(ctx, l.opt.IPv6)
	return err
}

// resolve is the VPC's private DNS zone.
func (l *Lab) resolve(name string) []netip.Addr {
	for _, service := range []string{"ec2", "iam", "sts"} {
		if name == service+"."+Region+"."+internalDomain {
			return []netip.Addr{endpointAddr}
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.names[name]
}

func (l *Lab) name(name string, addresses ...netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names[strings.ToLower(name)] = addresses
}

// Down ends everything that Up started. Files stay.
func (l *Lab) Down(ctx context.Context) error {
	var errs []error
	if l.controller != nil {
		l.controller.stop()
	}
	if l.kube != nil {
		errs = append(errs, l.kube.Stop(ctx))
	}
	if l.cloud != nil {
		errs = append(errs, l.cloud.close())
	}
	if l.Region != nil {
		l.Region.Close()
	}
	if l.Fabric != nil {
		errs = append(errs, l.Fabric.Close())
	}
	if l.http != nil {
		errs = append(errs, l.http.Close())
	}
	l.mu.Lock()
	files := l.files
	l.files = nil
	l.mu.Unlock()
	for _, f := range files {
		errs = append(errs, f.Close())
	}
	return errors.Join(errs...)
}

func (l *Lab) evidenceFile(name string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(l.opt.EvidenceDir, name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, fmt.Errorf("make evidence file: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.files = append(l.files, f)
	return f, nil
}

// pcap records every port. A walk-through's traffic is small.
func (l *Lab) pcap(eniID string) io.Writer {
	f, err := os.OpenFile(filepath.Join(l.opt.EvidenceDir, eniID+".pcap"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		l.log.Warn("port is not recorded", "eni", eniID, "error", err)
		return nil
	}
	return f
}

// FlowLog is the VPC's flow log, in AWS's default format.
func (l *Lab) FlowLog() string { return filepath.Join(l.opt.EvidenceDir, "flow.log") }

// AuditLog has a line of JSON for each call of the cloud's API, with CloudTrail's names.
func (l *Lab) AuditLog() string { return filepath.Join(l.opt.EvidenceDir, auditFile) }

// DropLog has a line for each of the frames that the fabric dropped lately, with the rules that it looked up, as of the
// last Flush.
func (l *Lab) DropLog() string { return filepath.Join(l.opt.EvidenceDir, "drops.log") }

// Flush writes what the data plane knows but has not yet written to FlowLog and DropLog.
func (l *Lab) Flush() error {
	l.Fabric.Flush()
	var b strings.Builder
	for _, d := range l.Fabric.Drops() {
		fmt.Fprintln(&b, d)
	}
	if err := os.WriteFile(l.DropLog(), []byte(b.String()), 0o644); err != nil {
		return fmt.Errorf("write the list of drops: %w", err)
	}
	return nil
}

// Pcap is the recording of an ENI's port, 802.1Q tags included.
func (l *Lab) Pcap(eniID string) string { return filepath.Join(l.opt.EvidenceDir, eniID+".pcap") }
