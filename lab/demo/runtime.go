package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// runtime is a container runtime as the kubelet calls it, and the version of CNI at which it runs the conflist, which
// offers 0.4.0, 1.0.0 and 1.1.0.
type runtime struct{ name, cni string }

var (
	containerd1 = runtime{"containerd://1.6.", "1.0.0"}
	containerd2 = runtime{"containerd://2.", "1.1.0"}
)

// keptResults prints a line for each result of our network that the node's runtime keeps: one per sandbox.
var keptResults = []string{"sh", "-c", `grep -oh '"result":{"cniVersion":"[^"]*"' /var/lib/cni/results/aws-cni-*`}

// runsAt shows which runtime a node has, and at which version of CNI it wired every pod that it has now.
func (w *walk) runsAt(ctx context.Context, m lab.Machine, r runtime) error {
	if _, err := w.Await(ctx, time.Minute, "the "+m.Type+"'s runtime is "+strings.TrimSuffix(r.name, "."), contains(r.name), w.Local,
		"kubectl", "get", "node", m.Hostname(), "-o", "jsonpath={.status.nodeInfo.containerRuntimeVersion}"); err != nil {
		return err
	}
	_, err := w.Await(ctx, time.Minute, "by the results that it keeps, it runs the conflist at CNI "+r.cni, func(o Output) error {
		for line := range strings.Lines(o.Stdout) {
			if want := `"result":{"cniVersion":"` + r.cni + `"`; strings.TrimSpace(line) != want {
				return fmt.Errorf("it keeps %s, want %s", line, want)
			}
		}
		return nil
	}, w.inside(m), keptResults...)
	return err
}
