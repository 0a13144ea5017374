package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/branchline-cni/branchline/aws"
)

// lateIMDS answers from some time on.
type lateIMDS struct {
	from  time.Time
	asked int
}

func (l *lateIMDS) Identity(context.Context) (aws.Identity, error) {
	if l.asked++; time.Now().Before(l.from) {
		return aws.Identity{}, errors.New("connection refused")
	}
	return aws.Identity{InstanceID: "i-1"}, nil
}

// TestAnAgentThatStartsWhileIMDSIsAwayWaitsForIt: an agent that is restarted then would otherwise be paused by the kubelet.
func TestAnAgentThatStartsWhileIMDSIsAwayWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		l := &lateIMDS{from: time.Now().Add(10 * time.Minute)}
		began := time.Now()
		got, err := identify(t.Context(), l, logger(&out, slog.LevelInfo))
		if late := time.Since(began) - 10*time.Minute; err != nil || got.InstanceID != "i-1" || late < 0 || late > identifyMost || l.asked > 50 {
			t.Errorf("%+v, %v, %s late, asked %d times", got, err, late, l.asked)
		}
		if !strings.Contains(out.String(), "connection refused") || !strings.Contains(out.String(), "is IMDS reachable") {
			t.Errorf("said %s", out.String())
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if _, err := identify(ctx, &lateIMDS{from: time.Now().Add(time.Hour)}, logger(&out, slog.LevelInfo)); err == nil || !strings.Contains(err.Error(), "connection refused") {
			t.Errorf("ended with %v", err)
		}
	})
}

// TestALogThatCanNotBeOpenedKeepsNoAgentFromStarting: a full or read-only disk.
func TestALogThatCanNotBeOpenedKeepsNoAgentFromStarting(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := openLog(filepath.Join(file, "ipamd.log"))
	if err == nil || out != (nopCloser{os.Stderr}) {
		t.Errorf("%v, %v", out, err)
	}
}

// TestAnInvalidEnvironmentIsNamedBeforeAnythingIsDone: by the agent and by its init container.
func TestAnInvalidEnvironmentIsNamedBeforeAnythingIsDone(t *testing.T) {
	dir, bin := t.TempDir(), t.TempDir()
	t.Setenv("MY_NODE_NAME", "node")
	t.Setenv("HOST_CNI_BIN_PATH", bin)
	t.Setenv("HOST_CNI_CONFDIR_PATH", dir)
	t.Setenv("WARM_IP_TARGET", "-5")
	t.Setenv("ENABLE_POD_ENI", "maybe")
	for verb, args := range map[string][]string{
		"run":     {"-kubeconfig", filepath.Join(dir, "none"), "-state", filepath.Join(dir, "state.json"), "-socket", filepath.Join(dir, "s")},
		"install": {"-source", dir, "-host-root", filepath.Join(dir, "none")},
	} {
		err := command(t.Context(), append([]string{verb}, args...))
		if err == nil {
			t.Errorf("%s accepted it", verb)
			continue
		}
		for _, part := range []string{`ENABLE_POD_ENI="maybe"`, `WARM_IP_TARGET="-5"`, "accepted: true or false"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %q does not name %s", verb, err, part)
			}
		}
	}
	for _, d := range []string{dir, bin} {
		if entries, err := os.ReadDir(d); err != nil || len(entries) > 0 {
			t.Errorf("left behind: %v, %v", entries, err)
		}
	}
}
