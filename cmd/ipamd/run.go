package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd"
	"github.com/branchline-cni/branchline/ipamd/config"
	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/recall"
	"github.com/branchline-cni/branchline/ipamd/takeover"
	"github.com/branchline-cni/branchline/logfile"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/rpc/nodeagent"
)

func runCommand(ctx context.Context, flags *flag.FlagSet, args []string) error {
	kubeconfig := flags.String("kubeconfig", "", "`file` to reach the API server with; without it, the pod's service account")
	state := flags.String("state", "/var/run/aws-node/branchline.json", "`file` of allocations")
	socket := flags.String("socket", rpc.SocketPath, "unix socket `path` to serve the CNI executable on")
	metricsAddr := flags.String("metrics", ":61678", "`address` of /metrics; empty: none")
	if err := parse(flags, args); err != nil {
		return err
	}
	c, err := load(logger(os.Stderr, slog.LevelInfo), os.LookupEnv)
	if err != nil {
		return err
	}
	if c.NodeName == "" {
		return errors.New("MY_NODE_NAME is not set: the DaemonSet's manifest sets it from spec.nodeName")
	}
	out, err := openLog(c.LogFile)
	log := logger(out, c.LogLevel)
	if err != nil {
		log.Error("the log goes to stderr", "error", err)
	}
	defer out.Close()
	klog.SetSlogLogger(logger(out, max(c.LogLevel, slog.LevelInfo))) // what client-go has to say of itself is no help to users
	if os.Getenv("GOGC") == "" {
		// A few MiB of heap are collected in a millisecond. Left to grow to twice what is in use they are memory of each node.
		debug.SetGCPercent(40)
	}
	err = run(ctx, c, log, *kubeconfig, *state, *socket, *metricsAddr)
	if err != nil {
		log.Error("the node agent ends", "error", err)
	}
	return err
}

func run(ctx context.Context, c *config.Config, log *slog.Logger, kubeconfig, state, socket, metricsAddr string) error {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	awsOptions := aws.Options{Endpoint: c.EC2Endpoint, Timeout: c.HTTPTimeout, Metrics: registry, UserAgent: "branchline-ipamd/" + rpc.Version, IPv6: c.IPv6}
	imds := aws.NewIMDS(awsOptions)
	identity, err := identify(ctx, imds, log)
	if err != nil {
		return err
	}
	kind, _ := aws.LookupInstanceType(identity.InstanceType) // the agent asks EC2 where the table lacks it
	awsOptions.Region = identity.Region
	ec2, err := aws.NewEC2(ctx, awsOptions)
	if err != nil {
		return fmt.Errorf("make the EC2 client: %w", err)
	}
	cfg, err := restConfig(kubeconfig, c.APIServer)
	if err != nil {
		return err
	}
	api, err := kube.Connect(cfg)
	if err != nil {
		return fmt.Errorf("make the client of the API server: %w", err)
	}
	k, err := kube.New(kube.Options{
		API: api, NodeName: c.NodeName, InstanceID: identity.InstanceID, Policies: c.PodENI, Log: log,
		ENIConfigs: c.CustomNetworking, NodeLabels: c.NodeLabels(), NodeAnnotations: c.NodeAnnotations(),
	})
	if err != nil {
		return err
	}
	links, err := enis.NewNetlink()
	if err != nil {
		return err
	}
	defer links.Close()
	routing, err := hostnet.NewKernel()
	if err != nil {
		return err
	}
	defer routing.Close()
	listener, err := rpc.Listen(socket)
	if err != nil {
		return err
	}
	defer listener.Close()
	agent, err := ipamd.New(ipamd.Options{
		Config: c, Identity: identity, Type: kind, Kube: k, Metadata: imds, EC2: ec2, Links: links, Routing: routing,
		StatePath: state, ResultsDir: recall.Dir, Listener: listener, Credentials: nodeagent.NewServerCredentials(),
		Metrics: registry, MetricsAddr: metricsAddr, Version: rpc.Version, Log: log,
		NoteReady: func() error { return rpc.NoteReady(socket) }, Sweeper: sweeper{filepath.Join(filepath.Dir(socket), "cni.lock"), c.VethPrefix},
		RemoveFormerNAT: takeover.RemoveNAT,
	})
	if err != nil {
		return err
	}
	return agent.Run(ctx)
}

// Pauses between two questions for what this instance is.
const (
	identifyFirst = time.Second
	identifyMost  = 15 * time.Second
)

// identify waits for IMDS to say which instance this is: nothing can be done before. To end instead would only bring the kubelet's
// pauses between two starts, which grow to five minutes.
func identify(ctx context.Context, imds interface {
	Identity(context.Context) (aws.Identity, error)
}, log *slog.Logger) (aws.Identity, error) {
	for pause := identifyFirst; ; pause = min(2*pause, identifyMost) {
		identity, err := imds.Identity(ctx)
		if err == nil {
			return identity, nil
		}
		err = fmt.Errorf("find out which instance this is (is IMDS reachable from the host's network?): %w", err)
		if ctx.Err() != nil {
			return identity, err
		}
		log.Error("the node agent can't begin yet; it tries again", "error", err, "in", pause)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return identity, err
		}
	}
}

func restConfig(kubeconfig, server string) (cfg *rest.Config, err error) {
	if kubeconfig != "" {
		cfg, err = clientcmd.BuildConfigFromFlags(server, kubeconfig)
	} else if cfg, err = rest.InClusterConfig(); err == nil && server != "" {
		cfg.Host = server
	}
	if err != nil {
		return nil, fmt.Errorf("configure the client of the API server: %w", err)
	}
	cfg.UserAgent = "branchline-ipamd/" + rpc.Version
	return cfg, nil
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// openLog opens the log. Where that fails, on a full or read-only disk, it is stderr: pods come first.
func openLog(target string) (io.WriteCloser, error) {
	switch target {
	case "stdout":
		return nopCloser{os.Stdout}, nil
	case "stderr":
		return nopCloser{os.Stderr}, nil
	}
	f, err := logfile.Open(target)
	if err != nil {
		return nopCloser{os.Stderr}, fmt.Errorf("open the log AWS_VPC_K8S_CNI_LOG_FILE=%q: %w", target, err)
	}
	return f, nil
}
