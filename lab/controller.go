package lab

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/lab/instance"
)

// ControllerMode says how vpc-controller runs.
type ControllerMode string

// Ways to run vpc-controller.
const (
	// Hosted is a process beside the API server, with the cluster's role, as a provider runs it for its users.
	Hosted ControllerMode = "hosted"
	// Deployment is the one of config/vpc-controller, on the nodes and with their role, as on a self-managed cluster.
	Deployment ControllerMode = "deployment"
)

// ParseControllerMode reads a mode by name.
func ParseControllerMode(name string) (ControllerMode, error) {
	switch m := ControllerMode(name); m {
	case Hosted, Deployment:
		return m, nil
	default:
		return "", fmt.Errorf("controller mode %q: want %s or %s", name, Hosted, Deployment)
	}
}

const (
	controllerAccount = "vpc-resource-controller"
	// ControllerPolicyName is the inline policy that a Deployment's node role gets.
	ControllerPolicyName = "vpc-controller"
	// rolloutWithin bounds a Deployment's start: 8 s on a namespace instance, minutes on a VM of a machine that is busy.
	rolloutWithin = 5 * time.Minute
	// controllerPort is where config/vpc-controller/deployment.yaml has the webhooks on the node.
	controllerPort = 9443

	// vpcEndpoint is what the programs under test are told of the cloud.
	vpcEndpoint = "http://192.168.0.3"
	// vpcEndpointName is the same by name: to resolve it on the host's network is a part of what a Deployment has to do.
	vpcEndpointName = "http://ec2." + Region + "." + internalDomain
)

// installController makes what every controller needs in the cluster: the CRDs, its ServiceAccount and its roles.
func (l *Lab) installController(ctx context.Context) error {
	for _, manifest := range [][]byte{config.CRDs(), config.ControllerRBAC()} {
		if err := l.kube.Apply(ctx, manifest); err != nil {
			return err
		}
	}
	return nil
}

// startController runs vpc-controller beside the control plane, as a provider that hosts it does: with a
// ServiceAccount's rights and the cluster's role.
func (l *Lab) startController(ctx context.Context) error {
	if err := l.installController(ctx); err != nil {
		return err
	}
	host, err := l.machineOf(l.ControlPlaneMachine)
	if err != nil {
		return err
	}
	kubeconfig := filepath.Join(l.stateDir(l.ControlPlaneMachine.ID), "kube", "vpc-controller.kubeconfig")
	// A certificate with the ServiceAccount's name has the rights that are bound to the account.
	if err := l.kube.WriteKubeconfig(kubeconfig, "system:serviceaccount:kube-system:"+controllerAccount,
		"system:serviceaccounts", "system:serviceaccounts:kube-system"); err != nil {
		return err
	}
	l.controller, err = supervise(ctx, host, "vpc-controller", instance.Command{
		Argv: []string{
			l.parts.controller, "--kubeconfig=" + kubeconfig, "--cluster-name=" + ClusterName, "--region=" + Region,
			"--ec2-endpoint=" + vpcEndpoint, "--webhook-url=https://127.0.0.1:9443", "--webhook-bind-address=127.0.0.1:9443",
			"--leader-elect",
		},
	}, l.log)
	return err
}

// deployController does what docs/install.md says for a self-managed cluster.
func (l *Lab) deployController(ctx context.Context) error {
	if err := l.installController(ctx); err != nil {
		return err
	}
	actx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if err := l.aws.Put(actx, NodeRole, ControllerPolicyName, string(config.ControllerIAMPolicy())); err != nil {
		return err
	}
	// The API server has to reach the webhooks on the node.
	if err := l.aws.allow(actx, l.Network.NodeGroupID, "tcp", controllerPort, l.Network.ClusterGroupID); err != nil {
		return err
	}
	manifest, err := controllerManifest(config.ControllerDeployment())
	if err != nil {
		return err
	}
	if err := l.kube.Apply(ctx, manifest); err != nil {
		return err
	}
	rctx, stop := context.WithTimeout(ctx, rolloutWithin)
	defer stop()
	if _, err := l.kube.Kubectl(rctx, "-n", "kube-system", "rollout", "status", "deployment/vpc-resource-controller"); err != nil {
		return fmt.Errorf("roll out vpc-controller: %w", err)
	}
	return nil
}

// controllerManifest is the manifest with the cluster's name filled in, as a user does, and told where the lab's EC2 is.
func controllerManifest(shipped []byte) ([]byte, error) {
	const line = `            - {name: CLUSTER_NAME, value: ""}` + "\n"
	if bytes.Count(shipped, []byte(line)) != 1 {
		return nil, fmt.Errorf("set CLUSTER_NAME in config/vpc-controller/deployment.yaml: it has no line %q, or several", line)
	}
	filled := fmt.Sprintf("            - {name: CLUSTER_NAME, value: %q}\n            - {name: AWS_EC2_ENDPOINT, value: %q}\n", ClusterName, vpcEndpointName)
	return bytes.Replace(shipped, []byte(line), []byte(filled), 1), nil
}
