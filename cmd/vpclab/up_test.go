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

// A folder that is somebody's is not the lab's to empty: the command runs as root.
func TestUpEmptiesNoFolderThatNoLabHasMade(t *testing.T) {
	files := func(dir string) (names []string) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return names
	}
	for what, tc := range map[string]struct {
		there []string
		ok    bool
	}{
		"nothing":              {nil, true},
		"an earlier lab's":     {[]string{pidFile, logFile, "state"}, true},
		"one that never began": {[]string{outFile}, true},
		"somebody's":           {[]string{"letters", "state"}, false},
	} {
		dir := t.TempDir()
		for _, f := range tc.there {
			if err := os.WriteFile(filepath.Join(dir, f), nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		err := emptied(dir)
		switch left := files(dir); {
		case tc.ok && (err != nil || len(left) > 0):
			t.Errorf("%s: %v, left %v", what, err, left)
		case !tc.ok && (err == nil || !strings.Contains(err.Error(), dir) || len(left) != len(tc.there)):
			t.Errorf("%s: %v, left %v", what, err, left)
		}
	}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	if err := emptied(fresh); err != nil || len(files(fresh)) > 0 {
		t.Error(err)
	}
	file := filepath.Join(fresh, "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := emptied(file); err == nil {
		t.Error("a file was taken for a folder")
	}
}
