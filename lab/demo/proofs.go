package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// counterProofs changes one rule at a time and watches the same pods.
func (w *walk) counterProofs(ctx context.Context) error {
	if _, err := w.Do(ctx, w.Local, "aws", "ec2", "revoke-security-group-ingress", "--group-id", w.rdsGroup, "--protocol", "tcp", "--port", "5432",
		"--source-group", w.podGroup, "--query", "Return", "--output", "text"); err != nil {
		return err
	}
	revoked := time.Now()
	if _, err := w.Await(ctx, 2*time.Minute, "with POD_SG's rule gone the green pod's next new connection times out",
		contains("timeout expired"), w.Local, "kubectl", "logs", w.green.name, "--since-time="+revoked.UTC().Format(time.RFC3339)); err != nil {
		return err
	}
	if err := w.rejected(ctx, w.green.ip, "and the flow log has its REJECT"); err != nil {
		return err
	}
	if err := w.authorize(ctx, w.rdsGroup, "tcp", "5432", "--source-group", w.podGroup); err != nil {
		return err
	}
	restored := time.Now().Add(time.Second)
	if _, err := w.Await(ctx, 2*time.Minute, "with the rule back the green pod reads again", contains("of security groups for pods"), w.Local,
		"kubectl", "logs", w.green.name, "--since-time="+restored.UTC().Format(time.RFC3339)); err != nil {
		return err
	}

	if err := w.apply(ctx, "allow-red-too", policyYAML("allow-red-too", "red-pod", w.podGroup)); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "kubectl", "delete", "pod", w.red.name, "--wait=true", "--timeout=60s"); err != nil {
		return err
	}
	successor, err := w.awaitPod(ctx, "red-pod", w.red.uid)
	if err != nil {
		return err
	}
	if _, err := w.Await(ctx, 2*time.Minute, "with a second policy that gives red-pod POD_SG, the red pod's successor gets in",
		contains("of security groups for pods"), w.Local, w.logs(successor)...); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "kubectl", "delete", "sgp", "allow-red-too"); err != nil {
		return err
	}
	if _, err := w.Do(ctx, w.Local, "kubectl", "delete", "deployment", "red-pod", "--wait=true", "--timeout=60s"); err != nil {
		return err
	}
	_, err = w.Await(ctx, 2*time.Minute, "only the green pod is left", lacks("red-pod"), w.Local, "kubectl", "get", "pods", "-o", "wide")
	return err
}

// tenth fills the node and asks for one more.
func (w *walk) tenth(ctx context.Context) error {
	if err := w.apply(ctx, "quiet", quietYAML(9)); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 6*time.Minute, "nine branch pods run on the m5.large and the tenth is Pending", func(o Output) error {
		running, pending := strings.Count(o.Stdout, "Running"), strings.Count(o.Stdout, "Pending")
		if running != 9 || pending != 1 {
			return fmt.Errorf("%d run and %d are pending, want 9 and 1", running, pending)
		}
		return nil
	}, w.Local, "kubectl", "get", "pods", "-l", "app=green-pod", "-o", "wide"); err != nil {
		return err
	}
	if _, err := w.Await(ctx, 2*time.Minute, "an event by our controller says which node has how many branch ENIs, and who uses them",
		oneLine(w.node.Hostname(), "9 of 9", w.green.name), w.Local, "kubectl", "get", "events", "--field-selector", "involvedObject.kind=Pod,type=Warning",
		"-o", `jsonpath={range .items[?(@.source.component!="default-scheduler")]}{.involvedObject.name}{"\t"}{.reason}{"\t"}{.message}{"\n"}{end}`); err != nil {
		return err
	}
	_, err := w.Await(ctx, time.Minute, "EC2 has nine branch ENIs with nine VLAN ids on that trunk", func(o Output) error {
		ids := strings.Fields(o.Stdout)
		different := map[string]bool{}
		for _, id := range ids {
			different[id] = true
		}
		if len(ids) < 9 || len(different) != len(ids) {
			return fmt.Errorf("VLAN ids %v, want at least nine, all different", ids)
		}
		return nil
	}, w.Local, "aws", "ec2", "describe-trunk-interface-associations", "--query", "InterfaceAssociations[?TrunkInterfaceId=='"+w.trunk+"'].VlanId", "--output", "text")
	return err
}

// quietYAML is a Deployment of branch pods that do nothing.
func quietYAML(replicas int) string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: Deployment
metadata: {name: quiet, namespace: default}
spec:
  replicas: %d
  selector: {matchLabels: {app: green-pod, role: quiet}}
  template:
    metadata: {labels: {app: green-pod, role: quiet}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
%s      containers:
      - name: pause
        image: %s
        imagePullPolicy: IfNotPresent
`, replicas, affinity, lab.PauseImage)
}
