//go:build lab

package demo

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// newRuntime is the walk with containerd 2.
type newRuntime struct{ *walk }

const (
	pluginLog = "/var/log/aws-routed-eni/plugin.log"
	stamp     = "/var/run/aws-node/last-ready"
	hostPort  = "18080"
)

func (n *newRuntime) wired(ctx context.Context) error {
	pod := `apiVersion: v1
kind: Pod
metadata: {name: probe}
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: probe
    image: ` + lab.ClientImage + `
    imagePullPolicy: IfNotPresent
    command: [sh, -c, "while :; do nc -l -p 8080 -e cat /etc/hostname; done"]
    ports: [{containerPort: 8080, hostPort: ` + hostPort + `}]
`
	if err := n.apply(ctx, "probe", pod); err != nil {
		return err
	}
	if _, err := n.Await(ctx, time.Minute, "the pod runs", contains("Running"), n.Local, "kubectl", "get", "pod", "probe", "-o", "wide"); err != nil {
		return err
	}
	if err := n.runsAt(ctx, n.node, containerd2); err != nil {
		return err
	}
	return n.reached(ctx, "the pod answers at its host port")
}

func (n *newRuntime) reached(ctx context.Context, claim string) error {
	_, err := n.Await(ctx, 30*time.Second, claim, equals("probe"), n.inside(n.node), "timeout", "5", "bash", "-c",
		`exec 3<>"/dev/tcp/$0/$1" && cat <&3`, n.node.Address.String(), hostPort)
	return err
}

// readiness is the Node's condition Ready.
type readiness struct{ Status, Message, LastTransitionTime string }

func (n *newRuntime) ready(ctx context.Context, claim string, check func(readiness) error) (r readiness, err error) {
	_, err = n.Await(ctx, time.Minute, claim, func(o Output) error {
		if err := json.Unmarshal([]byte(o.Stdout), &r); err != nil {
			return fmt.Errorf("read the condition Ready: %w", err)
		}
		return check(r)
	}, n.Local, "kubectl", "get", "node", n.node.Hostname(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")]}`)
	return r, err
}

func isReady(r readiness) error {
	if r.Status != "True" {
		return fmt.Errorf("the node is not Ready: %s", r.Message)
	}
	return nil
}

func notReady(words ...string) func(readiness) error {
	return func(r readiness) error {
		if r.Status != "False" {
			return fmt.Errorf("Ready is %s: %s", r.Status, r.Message)
		}
		return contains(append(words, "NetworkReady=false")...)(Output{Command: "kubectl", Stdout: r.Message})
	}
}

// put changes where the DaemonSet may run. With the selector null it runs again.
func (n *newRuntime) put(ctx context.Context, selector string) error {
	_, err := n.Do(ctx, n.Local, "kubectl", "-n", "kube-system", "patch", "daemonset", "aws-node", "--type=merge",
		"-p", `{"spec":{"template":{"spec":{"nodeSelector":`+selector+`}}}}`)
	return err
}

func (n *newRuntime) away(ctx context.Context) error {
	if err := n.put(ctx, `{"example.com/no-node": "has-it"}`); err != nil {
		return err
	}
	if _, err := n.Await(ctx, time.Minute, "no agent is left", equals(""), n.Local,
		"kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=aws-node", "-o", "name"); err != nil {
		return err
	}
	if _, err := n.Await(ctx, 30*time.Second, "the runtime asks for STATUS and hears of the grace", contains("can't be reached"), n.inside(n.node),
		"grep", `"msg":"STATUS".*"grace"`, pluginLog); err != nil {
		return err
	}
	if _, err := n.ready(ctx, "the node is Ready meanwhile", isReady); err != nil {
		return err
	}
	// As if it had been ready at this machine's boot only: nobody waits five minutes here.
	if _, err := n.Do(ctx, n.inside(n.node), "sh", "-c", "read boot at <"+stamp+` && echo "$boot 0" >`+stamp); err != nil {
		return err
	}
	if _, err := n.ready(ctx, "after the grace the node is not Ready, and its condition has STATUS's words",
		notReady("can't be reached", "longer than the 5m0s that a restart may take", "look at the pod aws-node")); err != nil {
		return err
	}
	if err := n.reached(ctx, "the pod that runs is none the worse for it"); err != nil {
		return err
	}
	// As after a boot, which keeps the conflist and not /run.
	if _, err := n.Do(ctx, n.inside(n.node), "rm", stamp); err != nil {
		return err
	}
	if _, err := n.ready(ctx, "before the first readiness since a boot, too", notReady("it has not been ready since this node's boot")); err != nil {
		return err
	}
	if err := n.put(ctx, "null"); err != nil {
		return err
	}
	_, err := n.ready(ctx, "with the agent back the node is Ready", isReady)
	return err
}

// podAddresses prints a line for each pod, and addressesIn counts those that have an address of their own.
var podAddresses = []string{"kubectl", "get", "pods", "-A", "--no-headers", "-o", "custom-columns=:.metadata.name,:.status.podIP,:.spec.hostNetwork"}

func addressesIn(o Output) (count int) {
	for line := range strings.Lines(o.Stdout) {
		if f := strings.Fields(line); len(f) == 3 && f[1] != "<none>" && f[2] == "<none>" {
			count++
		}
	}
	return count
}

func (n *newRuntime) full(ctx context.Context) error {
	before, err := n.ready(ctx, "the node is Ready", isReady)
	if err != nil {
		return err
	}
	deployment := `apiVersion: apps/v1
kind: Deployment
metadata: {name: many}
spec:
  replicas: 10
  selector: {matchLabels: {app: many}}
  template:
    metadata: {labels: {app: many}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers: [{name: pause, image: ` + lab.PauseImage + `, imagePullPolicy: IfNotPresent}]
`
	if err := n.apply(ctx, "many", deployment); err != nil {
		return err
	}
	if _, err := n.Await(ctx, 2*time.Minute, "one pod too many is told that there is no address", contains("are there and full"), n.Local,
		"kubectl", "get", "events", "--field-selector", "reason=FailedCreatePodSandBox", "-o", `jsonpath={range .items[*]}{.involvedObject.name}: {.message}{"\n"}{end}`); err != nil {
		return err
	}
	if _, err := n.Await(ctx, time.Minute, "as many run as there are addresses", func(o Output) error {
		if got := addressesIn(o); got != 9 {
			return fmt.Errorf("%d pods have an address of the pool, want 9", got)
		}
		return nil
	}, n.Local, podAddresses...); err != nil {
		return err
	}
	// From the first refusal on. The kubelet asks every 5 s.
	if _, err := n.Await(ctx, time.Minute, "the runtime goes on asking for STATUS and hears nothing bad", func(o Output) error {
		if asked := strings.Count(o.Stdout, `"msg":"STATUS"`); asked < 2 {
			return fmt.Errorf("STATUS was asked for %d times since", asked)
		}
		return lacks("STATUS failed")(o)
	}, n.inside(n.node), "sed", "-n", `/"ADD failed".*full/,$p`, pluginLog); err != nil {
		return err
	}
	_, err = n.ready(ctx, "the node was Ready all the time", func(r readiness) error {
		if r.LastTransitionTime != before.LastTransitionTime {
			return fmt.Errorf("Ready changed at %s", r.LastTransitionTime)
		}
		return isReady(r)
	})
	return err
}

// agentsPods is what the agent says of the pods that it knows.
func (n *newRuntime) agentsPods(ctx context.Context, claim string, check func(map[string]string) error) error {
	_, err := n.Await(ctx, time.Minute, claim, func(o Output) error {
		var pods []struct {
			Key struct {
				ContainerID string `json:"containerID"`
			} `json:"IPAMKey"`
			Metadata struct {
				Name string `json:"k8sPodName"`
			} `json:"IPAMMetadata"`
			IP, ENI, UID string
		}
		if err := json.Unmarshal([]byte(o.Stdout), &pods); err != nil {
			return fmt.Errorf("read what the agent says: %w", err)
		}
		known := map[string]string{}
		for _, p := range pods {
			known[p.Metadata.Name] = strings.Join([]string{p.UID, p.Key.ContainerID, p.IP, p.ENI}, " ")
		}
		return check(known)
	}, n.inside(n.node), n.lab.Tool("busybox"), "wget", "-q", "-O", "-", "http://127.0.0.1:61679/v1/pods")
	return err
}

// forgotten kills the agent and takes its file away.
func (n *newRuntime) forgotten(ctx context.Context) error {
	var before map[string]string
	if err := n.agentsPods(ctx, "the agent knows the pods that have its addresses", func(known map[string]string) error {
		if before = known; len(known) != 9 {
			return fmt.Errorf("it knows %d, want 9", len(known))
		}
		return nil
	}); err != nil {
		return err
	}
	if _, err := n.Do(ctx, n.inside(n.node), "rm", "/var/run/aws-node/branchline.json"); err != nil {
		return err
	}
	killed, err := n.lab.Kill(ctx, lab.Agent)
	if err != nil {
		return err
	}
	n.Note("kill -9: %s", killed)
	if err := n.agentsPods(ctx, "the next one, without its file, knows the same pods, sandboxes and addresses", func(known map[string]string) error {
		if !maps.Equal(known, before) {
			return fmt.Errorf("it knows %v, and they were %v", known, before)
		}
		return nil
	}); err != nil {
		return err
	}
	_, err = n.Await(ctx, time.Minute, "by what the runtime has", contains(`"pods":9`), n.inside(n.node), "grep", "are known again", "/var/log/aws-routed-eni/ipamd.log")
	return err
}

func (n *newRuntime) tornDown(ctx context.Context) error {
	if _, err := n.Do(ctx, n.Local, "kubectl", "delete", "deployment/many", "pod/probe", "--timeout=60s"); err != nil {
		return err
	}
	o, err := n.Await(ctx, time.Minute, "CoreDNS's pods alone are left", lacks("many", "probe"), n.Local, podAddresses...)
	if err != nil {
		return err
	}
	left := addressesIn(o)
	if _, err := n.Await(ctx, time.Minute, "the node has host links for those and no others", func(o Output) error {
		if got := strings.Count(o.Stdout, ": eni"); got != left {
			return fmt.Errorf("%d host links for %d pods", got, left)
		}
		return nil
	}, n.inside(n.node), n.lab.Tool("ip"), "-o", "link", "show", "type", "veth"); err != nil {
		return err
	}
	if _, err := n.Await(ctx, 30*time.Second, "and the runtime their results", func(o Output) error {
		if got := strings.Count(o.Stdout, "\n"); got != left {
			return fmt.Errorf("%d results for %d pods", got, left)
		}
		return nil
	}, n.inside(n.node), keptResults...); err != nil {
		return err
	}
	_, err = n.Await(ctx, time.Second, "no DEL failed", lacks("DEL failed"), n.inside(n.node), "cat", pluginLog)
	return err
}
