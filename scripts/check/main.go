// Command check runs everything that decides whether a change is good: what CI
// runs, and what make test runs. It looks at the machine first, makes what is
// missing, runs the parts, some of them beside each other, and ends with a summary that says
// what ran, how long it took and what was left out.
//
// A part that cannot run here fails and says why. A skipped test fails its part,
// unless allowedSkips gives the reason.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/artifacts/host"
)

const explanation = `Branchline's checks: linters, builds for amd64 and arm64, tests with the race detector, tests against a real
kernel in one virtual machine, against a real API server, and the whole walk-through in the lab.
The first run takes 50 to 60 minutes on 2 cores, as Kubernetes is built from source; later ones 14 to 20.
What is built stays in %s; nothing else is left on this machine but the Debian packages named below.
`

func main() {
	if os.Getenv(attendedEnv) == "" {
		code, err := attendSelf()
		if err != nil {
			fmt.Fprintln(os.Stderr, "check:", err)
			code = max(code, 2)
		}
		os.Exit(code)
	}
	os.Unsetenv(attendedEnv)
	only := flag.String("only", "", "run just these parts, separated by commas, and what they need")
	list := flag.Bool("list", false, "list the parts and end")
	logs := flag.String("logs", "out/logs", "folder for the log of each part")
	lanes := flag.Int("parallel", lanesHere(), "how many parts may run at once, one of them with a cluster")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, *only, *list, *logs, max(*lanes, 1))
	stop()
	os.Exit(code)
}

func run(ctx context.Context, only string, list bool, logs string, lanes int) int {
	root, err := artifacts.Checkout()
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	if err := os.Chdir(root); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	// So that what was compiled in another clone, at another path, is not compiled again.
	if err := os.Setenv("GOFLAGS", strings.TrimSpace(os.Getenv("GOFLAGS")+" -trimpath")); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	parts, left, err := choose(allParts(), only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	if list {
		for _, p := range parts {
			fmt.Printf("%-10s %s (cold %s, warm %s)\n", p.name, p.what, p.cold, p.warm)
		}
		return 0
	}
	cache, err := artifacts.Open()
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	fmt.Printf(explanation, cache.Dir())
	for _, p := range parts {
		fmt.Printf("  %-10s %-75s cold %4.0f min, warm %4.1f min\n", p.name, p.what, p.cold.Minutes(), p.warm.Minutes())
	}
	if err := prepare(ctx, cache, parts); err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}

	tmp, err := os.MkdirTemp("", "branchline-check-")
	if err != nil {
		fmt.Fprintln(os.Stderr, "check:", err)
		return 2
	}
	defer os.RemoveAll(tmp)
	r := &runner{root: root, tmp: tmp, logs: filepath.Join(root, logs), cache: cache, out: &console{w: os.Stdout}, lanes: lanes}
	if filepath.IsAbs(logs) {
		r.logs = logs
	}
	began := time.Now()
	results := r.runAll(ctx, parts)
	ok := summarize(os.Stdout, results, left, r.logs, time.Since(began))
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "check: interrupted")
		return 130
	}
	if !ok {
		return 1
	}
	return 0
}

// prepare looks at the machine before anything is changed, and then installs the
// Debian packages that the chosen parts need.
func prepare(ctx context.Context, cache *artifacts.Cache, parts []part) error {
	dirs := []string{cache.Dir(), os.TempDir()}
	needs := host.Needs{Go: host.GoVersion, FreeBytes: 5e9, MemoryBytes: 2 << 30, Dirs: dirs}
	for _, p := range parts {
		if p.heavy || p.devices {
			needs = host.Lab(dirs...)
			break
		}
	}
	for _, p := range parts {
		for _, pkg := range p.packages {
			if !slices.Contains(needs.Packages, pkg) {
				needs.Packages = append(needs.Packages, pkg)
			}
		}
	}
	return needs.Prepare(ctx, os.Stdout)
}
