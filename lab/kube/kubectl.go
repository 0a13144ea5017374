package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// kubectlDeadline bounds a kubectl call whose context has no deadline.
const kubectlDeadline = 2 * time.Minute

// KubectlError is a run of kubectl that failed.
type KubectlError struct {
	Args     []string
	ExitCode int // -1 when it did not run to its end
	Stderr   string
	Err      error
}

func (e *KubectlError) Error() string {
	return fmt.Sprintf("kubectl %s: %v: %s", strings.Join(e.Args, " "), e.Err, strings.TrimSpace(e.Stderr))
}

func (e *KubectlError) Unwrap() error { return e.Err }

// Kubectl runs the real kubectl on this machine as the cluster's administrator and returns what it printed. A failure
// is a *KubectlError.
func (c *ControlPlane) Kubectl(ctx context.Context, args ...string) (string, error) {
	return c.kubectl(ctx, nil, args...)
}

// Apply gives manifests (YAML or JSON, several documents) to kubectl apply, server-side.
func (c *ControlPlane) Apply(ctx context.Context, manifests []byte) error {
	_, err := c.kubectl(ctx, manifests, "apply", "--server-side", "--force-conflicts", "-f", "-")
	return err
}

func (c *ControlPlane) kubectl(ctx context.Context, stdin []byte, args ...string) (string, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, kubectlDeadline)
		defer cancel()
	}
	cmd := exec.CommandContext(ctx, c.executable("kubectl"), append([]string{"--kubeconfig=" + c.Kubeconfig()}, args...)...)
	// No KUBECONFIG, plugin or preference of the user may change what the lab does.
	cmd.Env = []string{"HOME=" + c.cfg.Dir, "PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err == nil {
		return stdout.String(), nil
	}
	failure := &KubectlError{Args: args, ExitCode: -1, Stderr: stderr.String(), Err: err}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		failure.ExitCode = exit.ExitCode()
	}
	if cause := context.Cause(ctx); cause != nil {
		failure.Err = fmt.Errorf("%w (%w)", cause, err)
	}
	return stdout.String(), failure
}

// WriteKubectl writes an executable script at path that runs kubectl on this cluster, for a person to use.
func (c *ControlPlane) WriteKubectl(path string) error {
	script := fmt.Sprintf("#!/bin/sh\n# kubectl on the lab's cluster. A third of its start would be collections.\nGOGC=400 exec %s --kubeconfig=%s \"$@\"\n",
		shellQuote(c.executable("kubectl")), shellQuote(c.Kubeconfig()))
	return writeFile(path, []byte(script), 0o755)
}

func shellQuote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// linkExecutables makes a folder with one link for each name to the multi-call binary, which looks at argv[0]: so
// that a process list says kube-apiserver and not hyperkube.
func linkExecutables(dir, hyperkube string, names []string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of executables: %w", err)
	}
	target, err := filepath.Abs(hyperkube)
	if err != nil {
		return fmt.Errorf("find the executable %s: %w", hyperkube, err)
	}
	if _, err := os.Stat(target); err != nil {
		return fmt.Errorf("find the executable of Kubernetes: %w", err)
	}
	for _, name := range names {
		link := filepath.Join(dir, name)
		if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("replace link %s: %w", link, err)
		}
		if err := os.Symlink(target, link); err != nil {
			return fmt.Errorf("link %s: %w", link, err)
		}
	}
	return nil
}
