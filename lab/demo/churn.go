package demo

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// churnPace is the least time between two ends of pods, of which every third one is a branch pod's. Addresses and branch ENIs rest
// for half a minute: at this pace enough are left of the node's eighteen and nine.
const churnPace = 2500 * time.Millisecond

// Deployments of the churn: regular pods, and pods that the policy of the step on modes selects.
const (
	churnRegular = "churn-regular"
	churnBranch  = "churn-branch"
)

// How many pods there are of a kind. Of two regular ones one runs while the other one is replaced.
const regularAtOnce, branchAtOnce = 2, 1

// churn is pods that come and go, as the API server tells of them.
type churn struct {
	*modesWalk
	still, stilled chan struct{} // closed: no pod is to be deleted any more, and none will be
	end            func()

	mu   sync.Mutex
	pods map[string]*churnPod // by UID
	err  error                // of the programs that it runs
}

// churnPod is what was seen of one pod.
type churnPod struct {
	name, ip     string
	created, ran time.Time // when it was first seen, and when it was seen to run with an address
	failed       string    // what a pod must not become
	told, gone   bool      // told to end, and gone
}

func (p churnPod) regular() bool { return strings.HasPrefix(p.name, churnRegular) }

// updateUnderChurn has another release of the agent rolled out, so that plugin and agent differ for a moment, while pods of
// both kinds come and go on the node. The last of the step's variables goes with the same rollout.
func (m *modesWalk) updateUnderChurn(ctx context.Context) error {
	if err := <-m.imported; err != nil {
		return err
	}
	log, err := os.Stat(m.lab.RuntimeLog(m.node))
	if err != nil {
		return fmt.Errorf("find the end of the runtime's log: %w", err)
	}
	c, err := m.startChurn(ctx)
	if err != nil {
		return err
	}
	defer c.end()
	for _, step := range []func(context.Context) error{c.update, c.settle} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return c.judge(ctx, log.Size())
}

func (m *modesWalk) startChurn(ctx context.Context) (*churn, error) {
	c := &churn{modesWalk: m, still: make(chan struct{}), stilled: make(chan struct{}), pods: map[string]*churnPod{}}
	if err := m.apply(ctx, "churn", churnYAML(churnRegular, regularAtOnce, "", m.node.Hostname())+churnYAML(churnBranch, branchAtOnce, modesLabel, m.node.Hostname())); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { c.note(c.watch(ctx)) })
	wg.Go(func() {
		defer close(c.stilled)
		c.note(c.turn(ctx))
	})
	c.end = func() {
		cancel()
		wg.Wait()
	}
	return c, nil
}

// settle ends the churn, once no pod is half made.
func (c *churn) settle(ctx context.Context) error {
	close(c.still)
	<-c.stilled
	if err := c.await(ctx, "the last pods of the churn to run", func(p []churnPod) bool {
		p = slices.DeleteFunc(p, func(p churnPod) bool { return p.told || p.gone || p.ran.IsZero() })
		return len(p) == regularAtOnce+branchAtOnce
	}); err != nil {
		return err
	}
	if _, err := c.Do(ctx, c.Local, "kubectl", "delete", "deployment", churnRegular, churnBranch); err != nil {
		return err
	}
	return c.await(ctx, "the last pods of the churn to be gone", func(p []churnPod) bool {
		return !slices.ContainsFunc(p, func(p churnPod) bool { return !p.gone })
	})
}

// update rolls the other release out, from the time on when pods come and go until some have come after it.
func (c *churn) update(ctx context.Context) error {
	// The first three, and one that came for another one.
	if err := c.await(ctx, "pods that come and go", ranSince(time.Time{}, 4, 1)); err != nil {
		return err
	}
	const patch = `{"spec":{"template":{"spec":{"initContainers":[{"name":"aws-vpc-cni-init","image":%[1]q,"env":[%[2]s]}],"containers":[{"name":"aws-node","image":%[1]q,"env":[%[2]s]}]}}}}`
	began := time.Now()
	if _, err := c.Do(ctx, c.Local, "kubectl", "-n", "kube-system", "patch", "daemonset", "aws-node", "-p",
		fmt.Sprintf(patch, lab.OtherAgentImage, `{"name":"BRANCHLINE_KUBELET_LOCAL","$patch":"delete"}`)); err != nil {
		return err
	}
	if _, err := c.Await(ctx, 5*time.Minute, "another release of the agent is rolled out while pods come and go", contains("successfully rolled out"), c.Local,
		"kubectl", "-n", "kube-system", "rollout", "status", "daemonset", "aws-node", "--timeout=25s"); err != nil {
		return err
	}
	ended := time.Now()
	if _, err := c.Await(ctx, time.Minute, "all agents are of that release", equals(lab.OtherAgentImage+" "+lab.OtherAgentImage), c.Local,
		"kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=aws-node", "-o", "jsonpath={.items[*].spec.containers[0].image}"); err != nil {
		return err
	}
	if err := c.await(ctx, "pods that come after the update", ranSince(ended, 2, 0)); err != nil {
		return err
	}
	if during := c.seenPods(func(p churnPod) bool { return p.created.After(began) && p.created.Before(ended) }); len(during) < 2 {
		return fmt.Errorf("in the %.0f s of the rollout %d pods came: nothing was shown", ended.Sub(began).Seconds(), len(during))
	}
	return nil
}

// ranSince is whether so many pods, and so many of each kind, came after a moment and run with an address, or did.
func ranSince(t time.Time, all, each int) func([]churnPod) bool {
	return func(pods []churnPod) bool {
		have := map[bool]int{}
		for _, p := range pods {
			if p.created.After(t) && !p.ran.IsZero() {
				have[p.regular()]++
			}
		}
		return have[true]+have[false] >= all && min(have[true], have[false]) >= each
	}
}

// watch has kubectl tell of each change of the churn's pods, and keeps all that it says.
func (c *churn) watch(ctx context.Context) error {
	file, err := os.Create(filepath.Join(c.dir, "churn-watch.json"))
	if err != nil {
		return err
	}
	defer file.Close()
	kubectl, err := lookPath("kubectl", c.env)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, kubectl, "get", "pods", "-l", "churn", "--watch", "--output-watch-events", "-o", "json")
	cmd.Env, cmd.Dir = c.env, c.dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	err = c.read(json.NewDecoder(io.TeeReader(out, file)))
	_ = cmd.Wait() // how it ended says less than what it said last
	if ctx.Err() != nil {
		return nil
	}
	return fmt.Errorf("kubectl get pods --watch ended: %w: %s", err, stderr.String())
}

// podEvent is what a watch says of a pod.
type podEvent struct {
	Type   string
	Object struct {
		Metadata struct {
			Name, UID         string
			DeletionTimestamp *string
		}
		Status struct{ Phase, PodIP string }
	}
}

func (c *churn) read(events *json.Decoder) error {
	for {
		var e podEvent
		if err := events.Decode(&e); err != nil {
			return err
		}
		c.mu.Lock()
		c.pods[e.Object.Metadata.UID] = e.seen(c.pods[e.Object.Metadata.UID], time.Now())
		c.mu.Unlock()
	}
}

// seen is what is known of a pod after an event.
func (e podEvent) seen(p *churnPod, now time.Time) *churnPod {
	if p == nil {
		p = &churnPod{name: e.Object.Metadata.Name, created: now}
	}
	switch {
	case e.Type == "DELETED":
		p.gone = true
	case e.Object.Status.Phase == "Running" && e.Object.Status.PodIP != "" && p.ran.IsZero() && e.Object.Metadata.DeletionTimestamp == nil:
		p.ran, p.ip = now, e.Object.Status.PodIP
	case e.Object.Metadata.DeletionTimestamp == nil && (e.Object.Status.Phase == "Failed" || e.Object.Status.Phase == "Succeeded"):
		p.failed = e.Object.Status.Phase
	}
	if e.Object.Metadata.DeletionTimestamp != nil {
		p.told = true
	}
	return p
}

// turn deletes the oldest running pod, of one branch pod and two regular pods in turns; its Deployment makes another.
func (c *churn) turn(ctx context.Context) error {
	for n := 0; ; {
		select {
		case <-c.still:
			return nil
		case <-ctx.Done():
			return nil
		case <-time.After(churnPace):
		}
		// A slow machine has its time: no more pods are on their way, up or down, than it keeps up with.
		if half := c.seenPods(func(p churnPod) bool { return !p.gone && (p.told || p.ran.IsZero()) }); len(half) > 1 {
			continue
		}
		running := c.seenPods(func(p churnPod) bool { return p.regular() == (n%3 != 0) && !p.ran.IsZero() && !p.told })
		if len(running) == 0 {
			continue // it is on its way
		}
		o, err := c.Local(ctx, []string{"kubectl", "delete", "pod", running[0].name, "--wait=false"})
		if ctx.Err() != nil {
			return nil
		}
		if err == nil && o.Code != 0 {
			err = fmt.Errorf("%s: %s", o.Command, o.All())
		}
		if err != nil {
			return err
		}
		n++
	}
}

// seenPods are those for which ok is true, the oldest first.
func (c *churn) seenPods(ok func(churnPod) bool) []churnPod {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []churnPod
	for _, p := range c.pods {
		if ok(*p) {
			out = append(out, *p)
		}
	}
	slices.SortFunc(out, func(a, b churnPod) int { return a.created.Compare(b.created) })
	return out
}

func (c *churn) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = errors.Join(c.err, err)
}

// await waits until the pods are as they should be.
func (c *churn) await(ctx context.Context, what string, ok func([]churnPod) bool) error {
	const within = 4 * time.Minute // a virtual machine of a machine that is busy takes half a minute over a pod
	ctx, cancel := context.WithTimeoutCause(ctx, within, fmt.Errorf("not so within %s", within))
	defer cancel()
	for {
		c.mu.Lock()
		err := c.err
		c.mu.Unlock()
		if err != nil {
			return err
		}
		pods := c.seenPods(func(churnPod) bool { return true })
		if ok(pods) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w: %+v", what, context.Cause(ctx), pods)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// churnYAML is a Deployment of pods that do nothing and end when they are told to: nobody has to kill them.
func churnYAML(name string, replicas int, app, node string) string {
	labels := map[string]string{"churn": name, "step": modesLabel}
	if app != "" {
		labels["app"] = app
	}
	var pairs []string
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		pairs = append(pairs, k+": "+labels[k])
	}
	return fmt.Sprintf(`---
apiVersion: apps/v1
kind: Deployment
metadata: {name: %[1]s, namespace: default}
spec:
  replicas: %[5]d
  selector: {matchLabels: {churn: %[1]s}}
  template:
    metadata: {labels: {%[2]s}}
    spec:
      nodeSelector: {kubernetes.io/hostname: %[3]s}
      automountServiceAccountToken: false
      containers:
      - name: pause
        image: %[4]s
        imagePullPolicy: IfNotPresent
`, name, strings.Join(pairs, ", "), node, lab.PauseImage, replicas)
}
