package lab

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/lab/kube"
)

const (
	apiPort = 6443

	nodeType      = "m5.large"  // can trunk: 9 branch ENIs
	smallNodeType = "t3.medium" // can't
	hostType      = "c5.large"  // of the control plane and the database

	// nodesReadyWithin bounds the first rollout of aws-node: 10 s, but minutes on a VM of a machine that is busy.
	nodesReadyWithin = 5 * time.Minute
)

// launchHost runs an instance and waits until its parts are plugged together.
func (l *Lab) launchHost(ctx context.Context, name, instanceType, role string, groups ...string) (Machine, instance.Instance, error) {
	m, err := l.aws.launch(ctx, name, instanceType, role, l.Network.NodeSubnetID, groups...)
	if err != nil {
		return m, nil, err
	}
	host, err := l.machineOf(m)
	if err != nil {
		return m, nil, err
	}
	l.name(m.Hostname(), m.Address)
	return m, host, nil
}

func (l *Lab) startControlPlane(ctx context.Context) error {
	m, host, err := l.launchHost(ctx, "control-plane", hostType, ClusterRole, l.Network.ClusterGroupID)
	if err != nil {
		return err
	}
	l.ControlPlaneMachine = m
	l.kube, err = kube.StartControlPlane(ctx, host, kube.ControlPlaneConfig{
		Dir: filepath.Join(l.stateDir(m.ID), "kube"), Hyperkube: l.parts.node.Hyperkube,
		Address: m.clusterAddress(), NetNS: host.NetnsPath(), Log: l.log,
	})
	if err != nil {
		return err
	}
	return l.kube.WriteKubectl(filepath.Join(l.BinDir(), "kubectl"))
}

func (l *Lab) startNodes(ctx context.Context) error {
	type node struct {
		name, instanceType string
		machine            *Machine
	}
	nodes := []node{{"node", nodeType, &l.Node}}
	if !l.opt.OneNode {
		nodes = append(nodes, node{"small-node", smallNodeType, &l.SmallNode})
	}
	var wg sync.WaitGroup
	errs := make([]error, len(nodes))
	for i, n := range nodes {
		wg.Go(func() { errs[i] = l.startNode(ctx, n.name, n.instanceType, n.machine) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Lab) startNode(ctx context.Context, name, instanceType string, out *Machine) error {
	m, host, err := l.launchHost(ctx, name, instanceType, NodeRole, l.Network.NodeGroupID)
	if err != nil {
		return err
	}
	*out = m
	cfg := kube.NodeConfig{
		Dir: filepath.Join(l.stateDir(m.ID), "kube"), Name: m.Hostname(), Address: m.clusterAddress(),
		InstanceID: m.ID, InstanceType: m.Type, Zone: AvailabilityZone, Nameserver: dnsAddr,
		Programs: l.parts.node, Containerd: l.parts.containerd, Images: []string{l.parts.images},
	}
	n, err := l.kube.StartNode(ctx, host, cfg)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.nodes[m.ID] = n
	l.mu.Unlock()
	l.progress("%s (%s) is a node: %s", m.ID, m.Type, m.Hostname())
	return nil
}

// installAddons applies what a user applies: aws-node and, here, CoreDNS, which EKS brings along.
func (l *Lab) installAddons(ctx context.Context) error {
	if err := l.kube.Apply(ctx, config.AWSNode()); err != nil {
		return err
	}
	// The first two are all that the agent is told of the lab. The rest of the manifest is what users apply.
	env := []string{"AWS_EC2_ENDPOINT=" + vpcEndpoint, "CLUSTER_NAME=" + ClusterName}
	if l.opt.IPv6 {
		env = append(env, "ENABLE_IPv6=true", "ENABLE_IPv4=false", "ENABLE_PREFIX_DELEGATION=true") // as EKS installs it there
	}
	env = append(env, l.opt.AgentEnv...)
	if _, err := l.kube.Kubectl(ctx, append([]string{"-n", "kube-system", "set", "env", "daemonset", "aws-node"}, env...)...); err != nil {
		return err
	}
	// The cool-down's floor, so that a walk-through doesn't take minutes longer than it needs to.
	cooldown := "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: amazon-vpc-cni, namespace: kube-system}\ndata: {branch-eni-cooldown: \"30\"}\n"
	if err := l.kube.Apply(ctx, []byte(cooldown)); err != nil {
		return err
	}
	if err := l.kube.InstallDNS(ctx); err != nil {
		return err
	}
	// A machine that has other work, too, takes minutes over the virtual machine's first containers. Without a deadline
	// of its own kubectl would be ended earlier.
	ctx, cancel := context.WithTimeout(ctx, nodesReadyWithin+10*time.Second)
	defer cancel()
	_, err := l.kube.Kubectl(ctx, "wait", "--for=condition=Ready", "node", "--all", fmt.Sprintf("--timeout=%.0fs", nodesReadyWithin.Seconds()))
	return err
}

// Victim is a program that a walk-through may kill.
type Victim string

// Victims, each of which is started again by whoever runs it: the kubelet, and the lab in place of a provider.
const (
	Agent      Victim = "node agent"
	Controller Victim = "controller"
	APIServer  Victim = "API server"
)

// Victims are all of them.
var Victims = []Victim{Agent, Controller, APIServer}

// Kill ends a program with SIGKILL and says what was killed.
func (l *Lab) Kill(ctx context.Context, v Victim) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	switch v {
	case Controller:
		if l.controller == nil {
			return "", fmt.Errorf("%q is a Deployment's here: delete its pod", v)
		}
		pid, err := l.controller.kill(ctx)
		return fmt.Sprintf("vpc-controller, pid %d on the control plane's instance", pid), err
	case APIServer:
		return "kube-apiserver, since then started again and ready", l.kube.Restart(ctx, kube.APIServer)
	case Agent:
		return l.killAgent(ctx)
	default:
		return "", fmt.Errorf("%q is nothing that can be killed; these can: %v", v, Victims)
	}
}

// killAgent ends the running agent in the m5.large. While a rollout has it stopped there is none: then it is waited for.
func (l *Lab) killAgent(ctx context.Context) (string, error) {
	// By name, inside the instance, whose only agent it is: pid namespaces keep it from seeing any other. No program is started
	// for each process that is there: it would take seconds of an emulated CPU, and the moment of the kill would be another.
	const script = `for p in /proc/[0-9]*; do
  read -r name 2>/dev/null <$p/comm || continue
  case $name in aws-k8s-agent) tr '\0' ' ' <$p/cmdline | grep -q ' run' && kill -9 ${p#/proc/} && echo ${p#/proc/} ;; esac
done`
	for {
		r, err := l.Exec(ctx, l.Node, "sh", "-c", script)
		if err != nil {
			return "", err
		}
		if pid := strings.TrimSpace(string(r.Stdout)); pid != "" {
			return "aws-k8s-agent, pid " + pid + " on the m5.large", nil
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("find a running agent on %s: %w", l.Node.ID, context.Cause(ctx))
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// KeepLogs copies the logs of every instance's programs into dir.
func (l *Lab) KeepLogs(dir string) error {
	logs, err := filepath.Glob(filepath.Join(l.opt.Dir, "i", "*", "logs"))
	if err != nil {
		return err
	}
	for _, from := range logs {
		to := filepath.Join(dir, filepath.Base(filepath.Dir(from)))
		if err := os.CopyFS(to, os.DirFS(from)); err != nil {
			return fmt.Errorf("keep logs: %w", err)
		}
	}
	return nil
}

func sinceSeconds(t time.Time) float64 { return time.Since(t).Seconds() }
