package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// Ports of probes. The groups let the kubelet in at the first two, and not at the last one.
const (
	httpProbePort    = 8400
	tcpProbePort     = 8401
	refusedProbePort = 8402
)

const modesLabel = "modes"

// listenYAML is a pod that listens at every port of the flows and probes.
func listenYAML(name, node string, hostNetwork, branch bool, probes string) string {
	var listen []string
	for _, p := range []ports{direct, byService, byNode} {
		listen = append(listen, fmt.Sprint(p.allowed), fmt.Sprint(p.notOut), fmt.Sprint(p.notIn))
	}
	for _, p := range []int{httpProbePort, tcpProbePort, refusedProbePort} {
		listen = append(listen, fmt.Sprint(p))
	}
	labels := "{step: " + modesLabel + ", who: " + name + "}"
	if branch {
		labels = "{step: " + modesLabel + ", who: " + name + ", app: " + modesLabel + "}" // which the policy selects
	}
	return fmt.Sprintf(`---
apiVersion: v1
kind: Pod
metadata: {name: %s, namespace: default, labels: %s}
spec:
  nodeSelector: {kubernetes.io/hostname: %s}
  hostNetwork: %t
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - name: listen
    image: %s
    imagePullPolicy: IfNotPresent
    command: [sh, -c, '%s']
    volumeMounts: [{name: tmp, mountPath: /tmp}]
%s  volumes: [{name: tmp, emptyDir: {}}]
`, name, labels, node, hostNetwork, lab.ClientImage, listenScript(listen...), probes)
}

// listenScript is a shell script that answers at ports by HTTP, at /cgi-bin/who with the address of who asks. It writes to /tmp.
func listenScript(ports ...string) string {
	return `echo here >/tmp/index.html; busybox mkdir /tmp/cgi-bin; { echo "#!/bin/sh"; echo "echo Content-Type: text/plain; echo; echo \$REMOTE_ADDR"; } >/tmp/cgi-bin/who; busybox chmod 755 /tmp/cgi-bin/who; for p in ` +
		strings.Join(ports, " ") + `; do busybox httpd -p $p -h /tmp; done; exec sleep 100000`
}

// probesLetIn are one of each kind at ports where the groups let the kubelet in.
var probesLetIn = fmt.Sprintf(`    startupProbe: {exec: {command: ["true"]}, periodSeconds: 1, timeoutSeconds: 10, failureThreshold: 60}
    livenessProbe: {tcpSocket: {port: %d}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 30}
    readinessProbe: {httpGet: {port: %d, path: /}, periodSeconds: 2, timeoutSeconds: 5}
`, tcpProbePort, httpProbePort)

// probeRefused is one at a port where the pod's group doesn't let the kubelet in.
var probeRefused = fmt.Sprintf("    readinessProbe: {httpGet: {port: %d, path: /}, periodSeconds: 2, timeoutSeconds: 3}\n", refusedProbePort)

// awaitListening waits until pods that listen run and are as ready as they should be, and notes all such pods' addresses.
func (w *walk) awaitListening(ctx context.Context, claim string, ready, address map[string]string) error {
	o, err := w.Await(ctx, 5*time.Minute, claim, func(o Output) error {
		have := map[string]string{}
		for line := range strings.Lines(o.Stdout) {
			if f := strings.Fields(line); len(f) == 4 && f[1] == "true" {
				have[f[0]] = f[2]
			}
		}
		for pod, want := range ready {
			if have[pod] != want {
				return fmt.Errorf("pod %s is ready: %q, want %s", pod, have[pod], want)
			}
		}
		return nil
	}, w.Local, "kubectl", "get", "pods", "-l", "step="+modesLabel, "-o",
		`jsonpath={range .items[*]}{.metadata.name}{" "}{.status.containerStatuses[0].started}{" "}{.status.containerStatuses[0].ready}{" "}{.status.podIP}{"\n"}{end}`)
	if err != nil {
		return err
	}
	for line := range strings.Lines(o.Stdout) {
		if f := strings.Fields(line); len(f) == 4 {
			address[f[0]] = f[3]
		}
	}
	return nil
}

// clusterIPs are the Services' addresses, by name.
func (w *walk) clusterIPs(ctx context.Context) (map[string]string, error) {
	o, err := w.Do(ctx, w.Local, "kubectl", "get", "services", "-o", `jsonpath={range .items[*]}{.metadata.name}{" "}{.spec.clusterIP}{"\n"}{end}`)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for line := range strings.Lines(o.Stdout) {
		if f := strings.Fields(line); len(f) == 2 {
			out[f[0]] = f[1]
		}
	}
	return out, nil
}

// serviceYAML is a ClusterIP for one of those pods.
func serviceYAML(name string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default, labels: {step: %s}}\nspec:\n  selector: {who: %s}\n  ports:\n", name, modesLabel, name)
	for _, p := range []uint16{byService.allowed, byService.notOut, byService.notIn} {
		fmt.Fprintf(&b, "  - {name: p%d, port: %d}\n", p, p)
	}
	return b.String()
}

// nodePortsYAML are a pod's Services that have a port of the node: of the type LoadBalancer, which is of the type NodePort,
// too. Nobody makes a load balancer for them.
func nodePortsYAML(pod string) string {
	n, ports := nodePortsOf[pod], []uint16{byNode.allowed, byNode.notOut, byNode.notIn}
	var b strings.Builder
	service := func(name, policy string, first uint16, ports ...uint16) {
		fmt.Fprintf(&b, "---\napiVersion: v1\nkind: Service\nmetadata: {name: %s, namespace: default, labels: {step: %s}}\nspec:\n"+
			"  type: LoadBalancer\n  externalTrafficPolicy: %s\n  selector: {who: %s}\n  ports:\n", name, modesLabel, policy, pod)
		for i, p := range ports {
			fmt.Fprintf(&b, "  - {name: p%d, port: %d, nodePort: %d}\n", p, p, int(first)+i)
		}
	}
	service(pod+"-cluster", "Cluster", n.cluster, ports...)
	service(pod+"-local", "Local", n.local, ports[0])
	return b.String()
}

func hostPortYAML(pod string) string {
	return fmt.Sprintf("    ports: [{containerPort: %d, hostPort: %d}]\n", byNode.allowed, nodePortsOf[pod].host)
}
