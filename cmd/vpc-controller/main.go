// Command vpc-controller is the control plane of security groups for pods: webhooks and resource controller. It runs
// where no hosted control plane does the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"strconv"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/metrics"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/controller"
)

func main() {
	if err := run(os.Args[1:], os.Stderr); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return
		}
		fmt.Fprintln(os.Stderr, "vpc-controller:", err)
		os.Exit(1)
	}
}

type settings struct {
	kubeconfig, endpoint, region string
	webhooks                     controller.Webhooks
	o                            controller.Options
}

func parse(args []string, out io.Writer) (*settings, error) {
	s := &settings{}
	f := flag.NewFlagSet("vpc-controller", flag.ContinueOnError)
	f.SetOutput(out)
	f.StringVar(&s.kubeconfig, "kubeconfig", "", "`path` of a kubeconfig; empty: the pod's own ServiceAccount")
	f.StringVar(&s.o.ClusterName, "cluster-name", os.Getenv("CLUSTER_NAME"), "`name` of the cluster, in the tags of what is made in EC2")
	f.StringVar(&s.endpoint, "ec2-endpoint", os.Getenv("AWS_EC2_ENDPOINT"), "`URL` of the EC2 API; empty: AWS's own")
	f.StringVar(&s.region, "region", os.Getenv("AWS_REGION"), "AWS `region`; empty: the instance's")
	f.StringVar(&s.webhooks.URL, "webhook-url", "", "base `URL` (https://host:port) by which the API server reaches the webhooks")
	f.StringVar(&s.webhooks.Service, "webhook-service", "", "`namespace/name` of the Service by which the API server reaches the webhooks, instead of a URL")
	bind := f.String("webhook-bind-address", ":9443", "`host:port` that the webhooks listen on; without a host: on all addresses")
	f.BoolVar(&s.o.LeaderElect, "leader-elect", true, "work only while holding the Lease kube-system/"+controller.Lease)
	f.StringVar(&s.o.MetricsAddr, "metrics-address", ":8443", "`host:port` for metrics (plain HTTP); empty: none")
	f.StringVar(&s.o.HealthAddr, "health-address", ":8081", "`host:port` for /healthz and /readyz; empty: none")
	err := f.Parse(args)
	if err != nil {
		return nil, err
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case s.o.ClusterName == "":
		return nil, errors.New("--cluster-name (or CLUSTER_NAME) is required: it marks what belongs to this cluster in EC2")
	case s.webhooks.URL == "" && s.webhooks.Service == "":
		return nil, errors.New("--webhook-url or --webhook-service is required: the API server has to reach the webhooks")
	case s.webhooks.URL != "" && s.webhooks.Service != "":
		return nil, errors.New("--webhook-url and --webhook-service exclude each other")
	}
	if s.webhooks.BindAddress, s.webhooks.Port, err = hostPort(*bind); err != nil {
		return nil, err
	}
	s.o.Webhooks = &s.webhooks
	return s, nil
}

func hostPort(bind string) (host string, port int, err error) {
	host, text, err := net.SplitHostPort(bind)
	if err == nil {
		port, err = strconv.Atoi(text)
	}
	if err != nil || port < 1 || port > 65535 {
		return "", 0, fmt.Errorf("--webhook-bind-address %q: want host:port", bind)
	}
	return host, port, nil
}

func run(args []string, out io.Writer) error {
	s, err := parse(args, out)
	if err != nil {
		return err
	}
	s.o.Log = slog.New(slog.NewJSONHandler(out, nil))
	log := logr.FromSlogHandler(s.o.Log.Handler())
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()

	if s.o.Config, err = restConfig(s.kubeconfig); err != nil {
		return err
	}
	if s.region == "" {
		id, err := aws.NewIMDS(aws.Options{}).Identity(ctx)
		if err != nil {
			return fmt.Errorf("no --region given, and the instance's can't be read: %w", err)
		}
		s.region = id.Region
	}
	if s.o.EC2, err = aws.NewEC2(ctx, aws.Options{Region: s.region, Endpoint: s.endpoint, Metrics: metrics.Registry, MetricsNamespace: "vpc_controller", UserAgent: "branchline-vpc-controller"}); err != nil {
		return err
	}
	return controller.Run(ctx, s.o)
}

func restConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		cfg, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("no --kubeconfig given, and no ServiceAccount of a pod: %w", err)
		}
		return cfg, nil
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("read --kubeconfig %s: %w", kubeconfig, err)
	}
	return cfg, nil
}
