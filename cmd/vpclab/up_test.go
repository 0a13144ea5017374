package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestALabIsHeldOnlyByTheProcessThatWroteItsID(t *testing.T) {
	start, err := startTime(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		content string
		held    bool
	}{
		"this process":             {fmt.Sprintf("%d %s\n", os.Getpid(), start), true},
		"its id, used again":       {fmt.Sprintf("%d %s1\n", os.Getpid(), start), false},
		"a process that has ended": {fmt.Sprintf("%d %s\n", ended.Process.Pid, start), false},
		"garbage":                  {"x y\n", false},
		"all processes":            {"-1 1\n", false},
		"empty":                    {"", false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, pidFile), []byte(tc.content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, held := holder(dir); held != tc.held {
			t.Errorf("%s: held = %v, want %v", name, held, tc.held)
		}
	}
}

func TestDownNamesTheFolderThatHasNoLab(t *testing.T) {
	dir := t.TempDir()
	if err := down(t.Context(), dir); err == nil || !strings.Contains(err.Error(), dir) {
		t.Errorf("error: %v", err)
	}
}
