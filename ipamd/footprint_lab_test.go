//go:build lab

package ipamd_test

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"

	"github.com/branchline-cni/branchline/build/product"
	"github.com/branchline-cni/branchline/lab/artifacts"
)

var (
	footprintPods = flag.String("footprint-pods", "110", "`numbers` of pods, growing, at which TestFootprint measures the agent")
	footprintJSON = flag.String("footprint-json", "", "`file` for what TestFootprint has measured; with it the agent is built as it ships")
)

// What the agent is held to. Of its resident memory the larger part is pages of its executable. How many of them the kernel
// counts is its own affair (it maps those around one that is touched, if they are in memory), but no more than there are: so
// what is the agent's own is held in each run, and its executable's size at each build, which together stay below the
// budget of 40 MiB. The sum is held where the executable is the one that ships; the test's own has symbols, and more in it.
const (
	mostAnonMiBWith110Pods     = 13
	mostResidentMiBWith110Pods = 36
	mostPeakMiBWith110Pods     = 40
	mostUntilReady             = 2 * time.Second
)

// footprint is what is told.
type footprint struct {
	Bytes        int64   `json:"executable_bytes"` // 0: not built as it ships
	ReadySeconds float64 `json:"ready_seconds"`
	Points       []point `json:"memory"`
}

type point struct {
	Pods    int     `json:"pods"`
	RSSMiB  float64 `json:"rss_mib"`
	AnonMiB float64 `json:"anonymous_mib"` // without the pages of its executable
	PeakMiB float64 `json:"peak_mib"`
}

// TestFootprint holds the agent to its budgets for memory and for the time until it is ready, on an m5.4xlarge with prefixes
// against the lab's EC2, its metadata service and a real API server. make bench has it measure up to 700 pods.
func TestFootprint(t *testing.T) {
	var f footprint
	role(t, "footprint", cniPolicy)
	n := launchA(t, ec2types.InstanceTypeM54xlarge, "footprint", "192.168.16.0/20")
	n.env = []string{"ENABLE_PREFIX_DELEGATION=true", "WARM_PREFIX_TARGET=1"}
	if *footprintJSON != "" {
		n.binary, f.Bytes = shipped(t)
	}
	n.join()
	n.start()
	f.ReadySeconds = n.awaitReady().Seconds()
	f.Points = append(f.Points, n.memory(0))
	have := 0
	for text := range strings.SplitSeq(*footprintPods, ",") {
		want, err := strconv.Atoi(text)
		must(t, err)
		n.fill(have, want)
		have = want
		f.Points = append(f.Points, n.memory(have))
	}
	t.Logf("%+v", f)
	if f.ReadySeconds > mostUntilReady.Seconds() {
		t.Errorf("ready after %.2f s, want %v at most", f.ReadySeconds, mostUntilReady)
	}
	if p := f.Points[1]; p.Pods == 110 {
		if p.AnonMiB > mostAnonMiBWith110Pods {
			t.Errorf("%.1f MiB of its own with %d pods, want %d at most", p.AnonMiB, p.Pods, mostAnonMiBWith110Pods)
		}
		if f.Bytes > 0 && (p.RSSMiB > mostResidentMiBWith110Pods || p.PeakMiB > mostPeakMiBWith110Pods) {
			t.Errorf("%.1f MiB resident with %d pods and %.1f at the most, want %d and %d", p.RSSMiB, p.Pods, p.PeakMiB, mostResidentMiBWith110Pods, mostPeakMiBWith110Pods)
		}
	}
	if *footprintJSON != "" {
		b, err := json.MarshalIndent(f, "", "  ")
		must(t, err)
		must(t, os.MkdirAll(filepath.Dir(*footprintJSON), 0o755))
		must(t, os.WriteFile(*footprintJSON, append(b, '\n'), 0o644))
	}
}

// shipped builds the agent as it ships.
func shipped(t *testing.T) (path string, bytes int64) {
	t.Helper()
	root, err := artifacts.Checkout()
	must(t, err)
	for _, p := range product.Programs() {
		if p.Package == "cmd/ipamd" {
			built, err := product.Build(t.Context(), root, runtime.GOARCH, "bench", t.TempDir(), p)
			must(t, err)
			return built[0].Path, built[0].Bytes
		}
	}
	t.Fatal("cmd/ipamd is not shipped")
	return "", 0
}

// fill runs pods until there are so many.
func (n *node) fill(have, want int) {
	n.t.Helper()
	next := make(chan int)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := range next {
				p := &corev1.Pod{}
				p.Namespace, p.Name = "default", fmt.Sprintf("footprint-%d", i)
				p.Spec = corev1.PodSpec{NodeName: n.name, Containers: []corev1.Container{{Name: "c", Image: "registry.example.com/some/image:v1.2.3"}}}
				if err := w.admin.Create(n.t.Context(), p); err != nil {
					n.t.Error(err)
					continue
				}
				ctx, cancel := context.WithTimeout(n.t.Context(), 60*time.Second)
				if _, err := n.add(ctx, p, p.Name); err != nil {
					n.t.Error(err)
				}
				cancel()
			}
		})
	}
	for i := have; i < want; i++ {
		next <- i
	}
	close(next)
	wg.Wait()
}

// memory is the agent's, as the kernel counts it.
func (n *node) memory(pods int) (p point) {
	n.t.Helper()
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", n.process.Process.Pid))
	must(n.t, err)
	defer f.Close()
	fields := map[string]*float64{"VmRSS": &p.RSSMiB, "RssAnon": &p.AnonMiB, "VmHWM": &p.PeakMiB}
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, rest, _ := strings.Cut(lines.Text(), ":")
		if into := fields[name]; into != nil {
			kib, err := strconv.Atoi(strings.TrimSuffix(strings.TrimSpace(rest), " kB"))
			must(n.t, err)
			*into = float64(kib) / 1024
		}
	}
	p.Pods = pods
	return p
}
