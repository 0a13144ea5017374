package rpc

import (
	"path/filepath"
	"testing"
	"time"
)

func TestReadyStampIsOfThisBootOnly(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "ipamd.sock")
	if _, err := SinceReady(socket); err == nil {
		t.Error("ready without a stamp")
	}
	if err := NoteReady(socket); err != nil {
		t.Fatal(err)
	}
	if age, err := SinceReady(socket); err != nil || age > 10*time.Second {
		t.Errorf("%v, %v", age, err)
	}
	for text, want := range map[string]time.Duration{"b 100\n": 20 * time.Second, "b 0": 2 * time.Minute, "b 120\n": 0, "b 121\n": 0} {
		if age, err := parseReady(text, "b", 2*time.Minute); err != nil || age != want {
			t.Errorf("%q: %v, %v", text, age, err)
		}
	}
	for _, text := range []string{"", "b", "b ", "b x", "b -1", "c 100", "b 130", "b 99999999999999999999"} {
		if age, err := parseReady(text, "b", 2*time.Minute); err == nil {
			t.Errorf("%q: %v", text, age)
		}
	}
}

func FuzzReadyStamp(f *testing.F) {
	f.Add("b 100\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		if age, err := parseReady(text, "b", 2*time.Minute); err == nil && (age < 0 || age > 2*time.Minute) {
			t.Errorf("%q: %v", text, age)
		}
	})
}
