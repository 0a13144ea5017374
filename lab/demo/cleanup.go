package demo

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// cleanUp takes everything back and counts what is left.
func (w *walk) cleanUp(ctx context.Context) error {
	deleted := func(args ...string) error {
		_, err := w.Await(ctx, 3*time.Minute, strings.Join(args, " ")+" is deleted", func(Output) error { return nil }, w.Local,
			append([]string{"kubectl", "delete", "--ignore-not-found", "--wait=false"}, args...)...)
		return err
	}
	if err := deleted("deployment", "green-pod", "quiet"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 4*time.Minute, "the pods are gone", lacks("green-pod", "quiet"), w.Local, "kubectl", "get", "pods"); err != nil {
		return err
	}
	if err := deleted("sgp", "allow-rds-access"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 5*time.Minute, "after the cool-down EC2 has no branch ENI", equals(""), w.Local,
		"aws", "ec2", "describe-network-interfaces", "--filters", "Name=description,Values=aws-k8s-branch-eni", "--query", "NetworkInterfaces[].NetworkInterfaceId", "--output", "text"); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "aws", "ec2", "delete-security-group", "--group-id", w.modesGroup); err != nil {
		return err
	}
	if err := w.setPodENI(ctx, false); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 5*time.Minute, "ENABLE_POD_ENI=false is rolled out", contains("successfully rolled out"), w.Local,
		"kubectl", "-n", "kube-system", "rollout", "status", "daemonset", "aws-node", "--timeout=25s"); err != nil {
		return err
	}
	name := w.node.Hostname()
	if _, err := w.Await(ctx, 3*time.Minute, "the label is gone", lacks(trunkLabel), w.Local,
		"kubectl", "get", "node", name, "--show-labels", "--no-headers"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 3*time.Minute, "the node has no capacity for branch ENIs any more", func(o Output) error {
		if got := strings.TrimSpace(o.Stdout); got != "" && got != "0" {
			return fmt.Errorf("capacity %s: %q, want 0", resource, got)
		}
		return nil
	}, w.Local, "kubectl", "get", "node", name, "-o", "jsonpath={.status.capacity."+resourcePath+"}"); err != nil {
		return err
	}
	node := w.inside(w.node)
	if _, err := w.Await(ctx, 2*time.Minute, "the node has no VLAN link", lacks("vlan"), node, "ip", "-d", "link", "show", "type", "vlan"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 2*time.Minute, "the node has no rule of a branch pod, and its local rule is first again", func(o Output) error {
		if !strings.HasPrefix(o.Stdout, "0:\tfrom all lookup local") {
			return fmt.Errorf("the first rule is not the local one: %q", o.Stdout)
		}
		return lacks("vlan", "10:\t", "20:\t")(o)
	}, node, "ip", "rule"); err != nil {
		return err
	}
	if err := w.oneTrunk(ctx, "exactly one trunk is left: it stays with its instance"); err != nil {
		return err
	}
	_, err := w.Await(ctx, time.Minute, "the CNINode keeps the feature", contains("SecurityGroupsForPods"), w.Local, "kubectl", "get", "cninode", name, "-o", "jsonpath={.spec.features}")
	return err
}

// terminate ends the instance and its Node, as a scale-down does.
func (w *walk) terminate(ctx context.Context) error {
	w.nodeLogs(ctx)
	if _, err := w.Do(ctx, w.Local, "aws", "ec2", "terminate-instances", "--instance-ids", w.node.ID, "--output", "text",
		"--query", "TerminatingInstances[].CurrentState.Name"); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "kubectl", "delete", "node", w.node.Hostname(), "--wait=false"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 3*time.Minute, "no ENI of the instance or its pods is left", func(o Output) error {
		if err := lacks(w.node.ID, "trunk", "branch")(o); err != nil {
			return err
		}
		return nil
	}, w.Local, "aws", "ec2", "describe-network-interfaces", "--output", "text",
		"--query", "NetworkInterfaces[].[NetworkInterfaceId,InterfaceType,Status,Description,Attachment.InstanceId]"); err != nil {
		return err
	}
	_, err := w.Await(ctx, 3*time.Minute, "its ledger and its CNINode are gone", lacks(w.node.ID, w.node.Hostname()), w.Local,
		"kubectl", "get", "branchledgers,cninodes", "-o", "wide")
	return err
}
