package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/instance"
	"github.com/branchline-cni/branchline/test/bench/report"
)

// vmDeadline bounds the part in the virtual machine.
const vmDeadline = 15 * time.Minute

// runInVM boots the lab's virtual machine, whose kernel has 802.1Q, and runs this program in it. It sees this machine's
// files and touches none of them.
func runInVM(ctx context.Context, o options, dir string) (doc report.Document, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, vmDeadline, fmt.Errorf("not done within %v", vmDeadline))
	defer cancel()
	cache, err := artifacts.Open()
	if err != nil {
		return doc, err
	}
	itself, err := cache.Go(ctx, "bench", "./test/bench", "")
	if err != nil {
		return doc, err
	}
	vm, err := boot(ctx, cache, o, dir, o.bins, itself)
	if err != nil {
		return doc, err
	}
	defer func() { err = errors.Join(err, vm.Close()) }()
	argv := []string{itself, "-inside", "-bins", o.bins, "-rounds", strconv.Itoa(o.vmRounds), "-pods", strconv.Itoa(o.vmPods),
		"-concurrency", strings.Trim(strings.ReplaceAll(fmt.Sprint(o.vmConcurrency), " ", ","), "[]"), "-growth", "0", "-reliability", "0"}
	if len(o.only) > 0 {
		argv = append(argv, "-only", strings.Join(o.only, ","))
	}
	r, err := vm.Exec(ctx, instance.Command{Argv: argv, Env: []string{"TMPDIR=/tmp"}, Stderr: os.Stderr})
	if err != nil {
		return doc, err
	}
	// A run that fails there leaves its count in the document, and exits with 1.
	if jsonErr := json.Unmarshal(r.Stdout, &doc); jsonErr != nil || len(doc.Places) == 0 {
		return doc, fmt.Errorf("exit code %d, and no results: %w", r.ExitCode, jsonErr)
	}
	return doc, nil
}

func boot(ctx context.Context, cache *artifacts.Cache, o options, dir string, keep ...string) (instance.Instance, error) {
	agent, err := instance.Agent(ctx, cache)
	if err != nil {
		return nil, err
	}
	kernel, err := cache.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	return instance.StartVM(ctx, instance.Spec{
		ID: fmt.Sprintf("bench-%d", os.Getpid()), Name: "bench", StateDir: filepath.Join(dir, "state"), Agent: agent, Kernel: kernel,
		MemoryMiB: o.memoryMiB, CPUs: 2, MaxENIs: 1, Modules: []string{"8021q", "veth"}, Keep: keep,
		Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
}
