package artifacts

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func testCache(t *testing.T) *Cache {
	t.Helper()
	c, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	c.out = newProgress(&bytes.Buffer{})
	return c
}

func TestAnEntryIsMadeOnceHoweverManyAsk(t *testing.T) {
	c := testCache(t)
	var made atomic.Int32
	r := recipe{kind: "test", key: "k", title: "test", deadline: time.Minute, build: func(_ context.Context, dir string) error {
		made.Add(1)
		return os.WriteFile(filepath.Join(dir, "f"), []byte("x"), 0o644)
	}}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			dir, err := c.entry(t.Context(), r)
			if err != nil {
				t.Error(err)
			} else if _, err := os.Stat(filepath.Join(dir, "f")); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if made.Load() != 1 {
		t.Errorf("made %d times", made.Load())
	}
}

func TestAFailedOrInterruptedBuildLeavesNothing(t *testing.T) {
	broken := errors.New("broken")
	for title, build := range map[string]func(context.Context, context.CancelFunc) error{
		"fails":               func(context.Context, context.CancelFunc) error { return broken },
		"interrupted":         func(ctx context.Context, cancel context.CancelFunc) error { cancel(); return ctx.Err() },
		"interrupted, unseen": func(_ context.Context, cancel context.CancelFunc) error { cancel(); return nil },
	} {
		t.Run(title, func(t *testing.T) {
			c := testCache(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			r := recipe{kind: "test", key: "k", title: "test", deadline: time.Minute, build: func(ctx context.Context, dir string) error {
				if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
					return err
				}
				return build(ctx, cancel)
			}}
			if _, err := c.entry(ctx, r); err == nil {
				t.Fatal("no error")
			}
			for _, glob := range []string{"tmp/*", "test/*"} {
				if left, _ := filepath.Glob(filepath.Join(c.Dir(), glob)); len(left) > 0 {
					t.Errorf("left behind: %v", left)
				}
			}
		})
	}
}

func TestWhatAKilledBuildLeftIsNotUsed(t *testing.T) {
	c := testCache(t)
	if err := os.MkdirAll(filepath.Join(c.Dir(), "tmp", "test-k", "old"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := c.entry(t.Context(), recipe{kind: "test", key: "k", title: "test", deadline: time.Minute, build: func(context.Context, string) error { return nil }})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "old")); !os.IsNotExist(err) {
		t.Errorf("the old build's file is there: %v", err)
	}
}

func TestWaitingForALockEndsWithTheContext(t *testing.T) {
	c := testCache(t)
	r := recipe{kind: "test", key: "k", title: "test", deadline: time.Minute}
	unlock, err := c.lock(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.entry(ctx, r); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("ended with %v", err)
	}
}

func TestOldEntriesAreRemovedAndTheNewestStay(t *testing.T) {
	c := testCache(t)
	for i, age := range []time.Duration{0, 1, 2, 3, 4, 400, 500} {
		dir := filepath.Join(c.Dir(), "test", string(rune('a'+i)))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age * 24 * time.Hour)
		if err := os.Chtimes(dir, at, at); err != nil {
			t.Fatal(err)
		}
	}
	c.prune("test", "a")
	left, _ := filepath.Glob(filepath.Join(c.Dir(), "test", "*"))
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if got := strings.Join(left, ""); got != "abcde" {
		t.Errorf("left %q, want abcde", got)
	}
}

func TestKeyDependsOnEachPart(t *testing.T) {
	seen := map[string][]string{}
	for _, parts := range [][]string{{"a", "b"}, {"ab"}, {"a", "b", ""}, {"b", "a"}, {"a\n1:b"}, {}} {
		k := key(parts...)
		if other, ok := seen[k]; ok {
			t.Errorf("%q and %q have one key", parts, other)
		}
		seen[k] = parts
	}
}

func TestModuleHashFollowsWhatABuildReads(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	hash := func() string {
		t.Helper()
		h, err := hashModule(dir)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	write("go.mod", "module x")
	write("a/a.go", "package a")
	write("nested/go.mod", "module y")
	first := hash()
	for name, counts := range map[string]bool{
		"a/a_test.go": false, "nested/b.go": false, ".git/HEAD": false, "a/testdata/x": false, "README.md": false, "out/logs/x.log": false,
		"a/b.go": true, "go.sum": true, "a/data.csv": true, "a/out/x.go": true, "go.mod": true,
	} {
		before := hash()
		write(name, "changed")
		if got := hash() != before; got != counts {
			t.Errorf("%s changed the hash: %v, want %v", name, got, counts)
		}
	}
	if first == hash() {
		t.Error("the hash never changed")
	}
}

func TestAptIsAskedAgainOnceItsFilesHaveChanged(t *testing.T) {
	c, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	lists, asked := t.TempDir(), filepath.Join(t.TempDir(), "asked")
	was := aptState
	t.Cleanup(func() { aptState = was })
	aptState = []string{lists, filepath.Join(lists, "not-there")}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(lists, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i, step := range []struct {
		change func()
		asked  string
	}{
		{func() {}, "."}, {func() {}, "."}, {func() { write("a", "1") }, ".."}, {func() {}, ".."}, {func() { write("a", "22") }, "..."}, {func() { write("not-there", "") }, "...."},
	} {
		step.change()
		out, err := c.askApt(t.Context(), "sh", "-c", "printf . >>"+asked+"; echo answer")
		if err != nil || string(out) != "answer\n" {
			t.Fatalf("step %d: %q, %v", i, out, err)
		}
		if b, err := os.ReadFile(asked); err != nil || string(b) != step.asked {
			t.Errorf("step %d: asked %q, want %q (%v)", i, b, step.asked, err)
		}
	}
	if _, err := c.askApt(t.Context(), "sh", "-c", "exit 3"); err == nil {
		t.Error("a failure is an answer")
	}
}

func TestAptPolicyIsRead(t *testing.T) {
	const out = "containerd:\n  Installed: (none)\n  Candidate: 1.6.20~ds1-1+deb12u3\n  Version table:\n     1.6.20~ds1-1+deb12u3 500\nold:\n  Installed: 1\n  Candidate: (none)\n"
	got, err := parsePolicy(out, []string{"containerd"})
	if want := []pkgVersion{{"containerd", "1.6.20~ds1-1+deb12u3"}}; err != nil || !cmp.Equal(want, got, cmp.AllowUnexported(pkgVersion{})) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, missing := range []string{"old", "unknown"} {
		if _, err := parsePolicy(out, []string{missing}); !errors.Is(err, ErrNoPackage) {
			t.Errorf("%s: %v", missing, err)
		}
	}
}

func TestAptSimulationIsRead(t *testing.T) {
	const out = "Reading package lists...\nInst libc6 (2.36-9 Debian:12.11/oldstable [amd64])\nInst runc [1.0] (1.1.5+ds1-1+deb12u1 Debian:12.11/oldstable [amd64]) []\nConf runc (1.1.5 x)\n"
	want := []pkgVersion{{"libc6", "2.36-9"}, {"runc", "1.1.5+ds1-1+deb12u1"}}
	if got := parseSimulation(out); !cmp.Equal(want, got, cmp.AllowUnexported(pkgVersion{})) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzParseAptOutput(f *testing.F) {
	f.Add("runc:\n  Candidate: 1\n")
	f.Add("Inst runc (1 x)\n")
	f.Fuzz(func(t *testing.T, s string) {
		pkgs, err := parsePolicy(s, []string{"runc"})
		if (err == nil) != (len(pkgs) == 1) {
			t.Errorf("%d packages, %v", len(pkgs), err)
		}
		for _, p := range parseSimulation(s) {
			if p.name == "" || p.version == "" {
				t.Errorf("incomplete: %v", p)
			}
		}
	})
}

func TestRequiredVersionIsFound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "go.mod")
	if err := os.WriteFile(path, []byte("module x\n\nrequire example.com/one v1.2.3\n\nrequire (\n\texample.com/two v0.1.0 // indirect\n)\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for module, want := range map[string]string{"example.com/one": "v1.2.3", "example.com/two": "v0.1.0"} {
		if got, err := requiredVersion(path, module); err != nil || got != want {
			t.Errorf("%s: %q, %v", module, got, err)
		}
	}
	if _, err := requiredVersion(path, "example.com/three"); err == nil {
		t.Error("a module that is not required has a version")
	}
}
