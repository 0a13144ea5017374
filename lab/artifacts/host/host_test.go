package host

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestVersionsAreComparedByNumber(t *testing.T) {
	for _, tc := range []struct {
		have, want string
		ok         bool
	}{
		{"1.26.8", "1.26", true}, {"1.26", "1.26.3", false}, {"1.27rc1", "1.26", true}, {"1.9", "1.26", false},
		{"2.0", "1.26", true}, {"devel", "1.26", false}, {"1.26.3", "1.26.3", true},
	} {
		if got := atLeast(tc.have, tc.want); got != tc.ok {
			t.Errorf("atLeast(%q, %q) = %v", tc.have, tc.want, got)
		}
	}
}

func TestEverythingThatIsMissingIsNamedAtOnce(t *testing.T) {
	ps := Needs{
		FreeBytes: 1 << 60, MemoryBytes: 1 << 60, Go: "99.1", Devices: []string{"/dev/no-such"}, Programs: []string{"no-such-program"},
		Dirs: []string{filepath.Join(t.TempDir(), "not", "there")},
	}.Look()
	var all []string
	for _, p := range ps {
		all = append(all, p.String())
	}
	text := strings.Join(all, "\n")
	for _, want := range []string{"Go 99.1", "/dev/no-such", "no-such-program", "disk space", "memory"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is not named in:\n%s", want, text)
		}
	}
}

func TestServicePolicyIsPutBack(t *testing.T) {
	path := filepath.Join(t.TempDir(), "policy-rc.d")
	read := func() string {
		b, err := os.ReadFile(path)
		if err != nil {
			return ""
		}
		return string(b)
	}
	suppress := func() func() {
		t.Helper()
		restore, err := suppressServices(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(read(), "exit 101") {
			t.Fatalf("the policy is %q", read())
		}
		return restore
	}

	suppress()()
	if read() != "" {
		t.Errorf("there was none, and now there is %q", read())
	}

	if err := os.WriteFile(path, []byte("theirs"), 0o755); err != nil {
		t.Fatal(err)
	}
	suppress() // and killed before it was put back
	suppress()()
	if read() != "theirs" {
		t.Errorf("theirs became %q", read())
	}
}
