package main

import (
	"os"
	"path/filepath"
	"testing"
)

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
