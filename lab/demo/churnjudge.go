package demo

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// judge shows, by what others say, that no ADD and no DEL of the churn failed: each pod ran with an address at its first
// sandbox, and is gone.
func (c *churn) judge(ctx context.Context, logged int64) error {
	pods := c.seenPods(func(churnPod) bool { return true })
	for _, p := range pods {
		if p.failed != "" || p.ran.IsZero() || !p.gone {
			return fmt.Errorf("pod %s of the churn: %+v, want it to have run with an address, and to be gone", p.name, p)
		}
	}
	branch := slices.DeleteFunc(slices.Clone(pods), churnPod.regular)
	c.Seen("%d regular and %d branch pods came and went, and each ran with an address (churn-watch.json)", len(pods)-len(branch), len(branch))
	if _, err := c.Await(ctx, 30*time.Second, "each of them was started, and no event says that its sandbox could not be made or ended", func(o Output) error {
		return started(o.Stdout, pods)
	}, c.Local, "kubectl", "get", "events", "-o", `jsonpath={range .items[?(@.involvedObject.kind=="Pod")]}{.involvedObject.name}{" "}{.reason}{" "}{.message}{"\n"}{end}`); err != nil {
		return err
	}
	runtime := []string{"sh", "-c", fmt.Sprintf(`tail -c +%d "$0" | grep -E '(RunPodSandbox|StopPodSandbox) for '`, logged+1), c.lab.RuntimeLog(c.node)}
	_, err := c.Await(ctx, 30*time.Second, "the runtime's log has one sandbox of each of them, its first, and none that could not be made or ended", func(o Output) error {
		return sandboxes(o.Stdout, pods)
	}, c.Local, runtime...)
	return err
}

// started compares the pods' events, a name, a reason and a message in each line, with the pods that they should tell of. A
// FailedKillPod that is about a container alone is no matter of the network: containerd 1.6 answers "ttrpc: closed" where a
// container ends by itself while it is told to.
func started(events string, pods []churnPod) error {
	reasons := map[string]map[string]bool{}
	for line := range strings.Lines(events) {
		pod, reason, _ := strings.Cut(strings.TrimSpace(line), " ")
		if reasons[pod] == nil {
			reasons[pod] = map[string]bool{}
		}
		reason, message, _ := strings.Cut(reason, " ")
		if reason == "FailedKillPod" && strings.Contains(message, `"KillContainer"`) && !strings.Contains(message, "KillPodSandbox") {
			continue
		}
		reasons[pod][reason] = true
	}
	for _, p := range pods {
		if !reasons[p.name]["Started"] {
			return fmt.Errorf("no event says that pod %s was started: %v", p.name, reasons[p.name])
		}
		for _, bad := range []string{"FailedCreatePodSandBox", "FailedKillPod", "FailedPodSandBoxStatus", "SandboxChanged", "BackOff", "Failed"} {
			if reasons[p.name][bad] {
				return fmt.Errorf("pod %s has an event %s", p.name, bad)
			}
		}
	}
	return nil
}

// sandboxes compares a log of containerd's with the pods that it should tell of.
func sandboxes(log string, pods []churnPod) error {
	made := map[string]int{}
	stopped := 0
	for line := range strings.Lines(log) {
		if strings.Contains(line, "level=error") || strings.Contains(line, "failed") {
			return fmt.Errorf("the runtime says: %s", strings.TrimSpace(line))
		}
		switch {
		case strings.Contains(line, "StopPodSandbox for ") && strings.Contains(line, "returns successfully"):
			stopped++
		case strings.Contains(line, "RunPodSandbox for ") && strings.Contains(line, "returns sandbox id"):
			_, rest, _ := strings.Cut(line, "Name:")
			name, rest, _ := strings.Cut(rest, ",")
			if made[name]++; strings.HasPrefix(name, "churn-") && !strings.Contains(rest, "Attempt:0,") {
				return fmt.Errorf("not the first sandbox of its pod: %s", strings.TrimSpace(line))
			}
		}
	}
	for _, p := range pods {
		if made[p.name] != 1 {
			return fmt.Errorf("%d sandboxes were made for pod %s, want 1", made[p.name], p.name)
		}
	}
	if stopped < len(pods) {
		return fmt.Errorf("%d sandboxes were stopped, of %d pods", stopped, len(pods))
	}
	return nil
}
