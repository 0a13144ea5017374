package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func newWork(t *testing.T, out *bytes.Buffer) *work {
	dir := t.TempDir()
	return &work{runner: &runner{root: dir, tmp: dir, logs: dir, out: &console{w: out}, lanes: 1}, log: &lineWriter{w: out}}
}

func TestGoTestEventsAreCounted(t *testing.T) {
	var out bytes.Buffer
	w := newWork(t, &out)
	for _, line := range []string{
		`{"Action":"start","Package":"github.com/branchline-cni/branchline/policy"}`,
		`{"Action":"output","Package":"github.com/branchline-cni/branchline/policy","Test":"TestA","Output":"hello\n"}`,
		`{"Action":"pass","Package":"github.com/branchline-cni/branchline/policy","Test":"TestA/x","Elapsed":0}`,
		`{"Action":"pass","Package":"github.com/branchline-cni/branchline/policy","Test":"TestA","Elapsed":0}`,
		`{"Action":"output","Package":"github.com/branchline-cni/branchline/policy","Test":"TestB","Output":"=== RUN   TestB\n"}`,
		`{"Action":"output","Package":"github.com/branchline-cni/branchline/policy","Test":"TestB","Output":"    x_test.go:1: it is wrong\n"}`,
		`{"Action":"fail","Package":"github.com/branchline-cni/branchline/policy","Test":"TestB","Elapsed":0}`,
		`{"Action":"skip","Package":"github.com/branchline-cni/branchline/policy","Test":"TestC","Elapsed":0}`,
		`{"Action":"fail","Package":"github.com/branchline-cni/branchline/policy","Elapsed":0}`,
		`{"Action":"skip","Package":"github.com/branchline-cni/branchline/none","Elapsed":0}`,
		`{"ImportPath":"github.com/branchline-cni/branchline/broken [x.test]","Action":"build-output","Output":"syntax error\n"}`,
		`{"ImportPath":"github.com/branchline-cni/branchline/broken [x.test]","Action":"build-fail"}`,
		`{"Action":"fail","Package":"github.com/branchline-cni/branchline/broken","Elapsed":0,"FailedBuild":"x"}`,
		`not an event`,
	} {
		w.goTest(line)
	}
	want := tally{
		passed: 2, failed: 1, skipped: []string{"policy.TestC"}, failures: []string{"policy.TestB", "broken"},
		said: map[string][]string{"broken": {"syntax error"}, "policy.TestB": {"    x_test.go:1: it is wrong"}},
	}
	if d := cmp.Diff(want, w.tests, cmp.AllowUnexported(tally{})); d != "" {
		t.Errorf("counted (-want +got):\n%s", d)
	}
	for _, want := range []string{"hello\n", "syntax error\n", "not an event\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the log lacks %q:\n%s", want, &out)
		}
	}
}

func TestVerboseOutputOfATestBinaryIsCounted(t *testing.T) {
	var out bytes.Buffer
	w := newWork(t, &out)
	var at position
	for line := range strings.Lines("=== PKG plugins/datapath\n=== RUN   TestA\n    --- PASS: TestA/x (0.00s)\n--- PASS: TestA (0.01s)\n=== RUN   TestB\n    b_test.go:1: no link\n--- FAIL: TestB (1.00s)\n--- SKIP: TestC (0.00s)\nFAIL\n") {
		w.verbose(&at, strings.TrimSuffix(line, "\n"))
	}
	want := tally{passed: 2, failed: 1, skipped: []string{"plugins/datapath.TestC"}, failures: []string{"plugins/datapath.TestB"}}
	if got := strings.Join(w.tests.reasons(), "\n"); !strings.Contains(got, "plugins/datapath.TestB:\n        b_test.go:1: no link") || strings.Contains(got, "TestA") {
		t.Errorf("what the failed test says: %q", got)
	}
	w.tests.said = nil
	if d := cmp.Diff(want, w.tests, cmp.AllowUnexported(tally{})); d != "" {
		t.Errorf("counted (-want +got):\n%s", d)
	}
}

func TestASkippedTestFailsItsPart(t *testing.T) {
	var skips tally
	skips.count("skip", modulePrefix+"policy", "TestC")
	if err := skips.verdict(); err == nil || !strings.Contains(err.Error(), "policy.TestC") {
		t.Errorf("verdict is %v", err)
	}
}

// runParts runs parts that do nothing but what is given.
func runParts(t *testing.T, ctx context.Context, out *bytes.Buffer, parts ...part) []result {
	t.Helper()
	w := newWork(t, out)
	for i := range parts {
		if parts[i].deadline == 0 {
			parts[i].deadline = time.Minute
		}
	}
	return w.runAll(ctx, parts)
}

func TestLaterPartsRunUnlessTheyNeedOneThatFailed(t *testing.T) {
	var out bytes.Buffer
	ran := ""
	one := func(name string, err error, after ...string) part {
		return part{name: name, after: after, run: func(context.Context, *work) error { ran += name; return err }}
	}
	results := runParts(t, t.Context(), &out,
		one("a", errors.New("broken")), one("b", nil), one("c", nil, "a"), one("d", nil, "c"), one("e", nil, "b"))
	if ran != "abe" {
		t.Errorf("ran %q, want abe", ran)
	}
	var table bytes.Buffer
	if summarize(&table, results, []string{"part x: not named"}, "logs", time.Minute) {
		t.Error("a failed part makes no failed run")
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	if last := lines[len(lines)-1]; last != "2 passed, 3 failed" {
		t.Errorf("the last line is %q\n%s", last, &table)
	}
	for _, want := range []string{"NOT RUN", "part x: not named", "a: broken"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, &table)
		}
	}
}

func TestTheSummaryHasTheEndOfAFailedPartsLog(t *testing.T) {
	var out, table bytes.Buffer
	results := runParts(t, t.Context(), &out, part{name: "a", run: func(ctx context.Context, w *work) error {
		return w.command(ctx, nil, nil, "sh", "-c", "seq 100 140; echo the reason >&2; exit 3")
	}})
	summarize(&table, results, nil, "logs", time.Minute)
	for _, want := range []string{"the reason", "140", "exit status 3"} {
		if !strings.Contains(table.String(), want) {
			t.Errorf("the summary lacks %q:\n%s", want, &table)
		}
	}
	if strings.Contains(table.String(), "110") || !strings.Contains(out.String(), "110") {
		t.Errorf("the whole log is in the summary, or not in what was said before:\n%s\n%s", &table, &out)
	}
}

// TestTheSummaryNamesTheTestsThatFailed: which command failed says little where it runs a hundred packages.
func TestTheSummaryNamesTheTestsThatFailed(t *testing.T) {
	var out, table bytes.Buffer
	line := func(action, test, said string) string {
		return fmt.Sprintf(`{"Action":%q,"Package":"%spolicy","Test":%q,"Output":%q}`, action, modulePrefix, test, said)
	}
	script := strings.Join([]string{
		line("output", "TestA/x", "    a_test.go:7: seen 1, want 2\n"), line("fail", "TestA/x", ""), line("fail", "TestA", ""),
		line("output", "TestB", "fine\n"), line("pass", "TestB", ""),
	}, "\n")
	results := runParts(t, t.Context(), &out, part{name: "a", run: func(ctx context.Context, w *work) error {
		return w.command(ctx, []string{"SCRIPT=" + script}, w.goTest, "sh", "-c", `printf '%s\n' "$SCRIPT"; exit 1`)
	}})
	summarize(&table, results, nil, "logs", time.Minute)
	for _, want := range []string{"a: failed: policy.TestA/x, policy.TestA (log", "policy.TestA/x:\n        a_test.go:7: seen 1, want 2", "1 passed, 2 failed"} {
		if !strings.Contains(strings.ReplaceAll(table.String(), "\n  ", "\n"), want) {
			t.Errorf("the summary lacks %q:\n%s", want, &table)
		}
	}
	if strings.Contains(table.String(), "fine") {
		t.Errorf("it shows what passed:\n%s", &table)
	}
}

func TestPartsGiveWay(t *testing.T) {
	own, err := syscall.Getpriority(syscall.PRIO_PROCESS, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, nice := range []int{0, 3} {
		want := min(20-own+nice, 19)
		var out bytes.Buffer
		r := runParts(t, t.Context(), &out, part{name: "a", nice: nice, run: func(ctx context.Context, w *work) error {
			// It is told right after its start.
			return w.command(ctx, nil, nil, "sh", "-c", fmt.Sprintf(`
				group() { [ ! -e /proc/self/autogroup ] || case $(cat /proc/self/autogroup) in *" nice %d") ;; *) return 1 ;; esac; }
				n=0; until [ $(nice) = %[1]d ] && group; do n=$((n+1)); [ $n -lt 1000 ] || exit 1; done`, want))
		}})
		if r[0].err != nil {
			t.Errorf("nice %d: its programs do not have nice value %d: %v", nice, want, r[0].err)
		}
	}
}

func TestPartsRunBesideEachOtherButForThoseAlone(t *testing.T) {
	var out bytes.Buffer
	w := newWork(t, &out)
	w.lanes = 2
	var mu sync.Mutex
	now, most := map[string]bool{}, 0
	met := make(chan bool)
	one := func(name string, alone bool, after ...string) part {
		return part{name: name, alone: alone, after: after, deadline: time.Minute, run: func(ctx context.Context, w *work) error {
			mu.Lock()
			now[name] = true
			most = max(most, len(now))
			beside := len(now)
			mu.Unlock()
			defer func() {
				mu.Lock()
				defer mu.Unlock()
				delete(now, name)
			}()
			switch {
			case alone && beside > 1:
				return fmt.Errorf("%s runs beside another: %v", name, now)
			case name == "c": // ends only when d has begun, and d only when c has
				select {
				case met <- true:
				case <-ctx.Done():
					return ctx.Err()
				}
			case name == "d":
				select {
				case <-met:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		}}
	}
	results := w.runAll(t.Context(), []part{one("a", true), one("b", false, "a"), one("c", false), one("d", false), one("e", false, "c"), one("f", true), one("g", false, "e")})
	for i, r := range results {
		if r.err != nil || r.part.name != string(rune('a'+i)) {
			t.Errorf("result %d is of %q: %v", i, r.part.name, r.err)
		}
	}
	if most != 2 {
		t.Errorf("at most %d parts ran at once, want 2", most)
	}
}

func TestHeavyPartsLeaveALaneToLightOnes(t *testing.T) {
	parts := []part{{name: "a", heavy: true}, {name: "b", heavy: true}, {name: "c", heavy: true}, {name: "d"}, {name: "e"}}
	for _, c := range []struct {
		waiting, running []int
		lanes, want      int
	}{
		{[]int{0, 1, 2, 3, 4}, nil, 2, 0},
		{[]int{1, 2, 3, 4}, []int{0}, 2, 2},
		{[]int{1, 2, 4}, []int{0}, 3, 2},
		{[]int{1, 2, 4}, []int{3}, 2, 0},
		{[]int{1, 2}, []int{0}, 2, -1},
		{[]int{1, 2, 4}, []int{0, 3}, 2, -1},
	} {
		if got := next(parts, c.waiting, c.running, c.lanes); got != c.want {
			t.Errorf("of %v beside %v starts %d, want %d", c.waiting, c.running, got, c.want)
		}
	}
}

func TestAPartThatHangsIsEndedAtItsDeadline(t *testing.T) {
	var out bytes.Buffer
	began := time.Now()
	results := runParts(t, t.Context(), &out, part{name: "hang", deadline: 300 * time.Millisecond, run: func(ctx context.Context, w *work) error {
		return w.command(ctx, nil, nil, "sh", "-c", "sleep 60 & wait")
	}})
	if results[0].err == nil || !strings.Contains(results[0].err.Error(), "deadline") {
		t.Errorf("ended with %v", results[0].err)
	}
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("ended after %s", took)
	}
}

// The test plays all three: the process that attends, its child, and (as who started the first) the judge.
func TestOrphansAreReapedAndThoseThatRunOnAreEnded(t *testing.T) {
	const self = "-test.run=^TestOrphansAreReapedAndThoseThatRunOnAreEnded$"
	const roleEnv = "BRANCHLINE_TEST_ATTEND"
	if os.Getenv(roleEnv) != "" && os.Getenv(attendedEnv) == "" {
		code, err := attend("/proc/self/exe", []string{"check", self}, os.Environ())
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(code)
	}
	if os.Getenv(roleEnv) != "" {
		// Both are in sessions of their own, and their parent ends before them.
		out, err := exec.Command("sh", "-c", "setsid sleep 300 >/dev/null 2>&1 & echo $!; setsid sleep 0.1 >/dev/null 2>&1 & echo $!").Output()
		pids := strings.Fields(string(out))
		if err != nil || len(pids) != 2 {
			t.Fatalf("%q, %v", out, err)
		}
		for gone := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := os.Stat("/proc/" + pids[1]); errors.Is(err, os.ErrNotExist) {
				break
			}
			if time.Now().After(gone) {
				t.Fatalf("process %s ended and nobody reaps it", pids[1])
			}
		}
		fmt.Println("left:", pids[0])
		os.Exit(7)
	}
	cmd := exec.Command("/proc/self/exe", self)
	cmd.Env = append(os.Environ(), roleEnv+"=1")
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.ExitCode() != 7 {
		t.Fatalf("ended with %v, want its child's exit status 7:\n%s", err, out)
	}
	_, rest, _ := strings.Cut(string(out), "left: ")
	pid, rest, _ := strings.Cut(rest, "\n")
	if pid == "" || !strings.Contains(rest, "left running: sleep") {
		t.Errorf("says:\n%s", out)
	}
	if _, err := os.Stat("/proc/" + pid); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("process %s runs on: %v", pid, err)
	}
}

func TestInterruptionLeavesTheRestNotRun(t *testing.T) {
	var out bytes.Buffer
	ctx, cancel := context.WithCancel(t.Context())
	results := runParts(t, ctx, &out,
		part{name: "a", run: func(ctx context.Context, w *work) error { cancel(); return ctx.Err() }},
		part{name: "b", run: func(context.Context, *work) error { t.Error("b ran"); return nil }})
	if !errors.Is(results[1].err, errNotRun) {
		t.Errorf("b ended with %v", results[1].err)
	}
}

func TestOnlyTakesWhatThePartsNeed(t *testing.T) {
	names := func(ps []part) string {
		var ns []string
		for _, p := range ps {
			ns = append(ns, p.name)
		}
		return strings.Join(ns, " ")
	}
	all := allParts()
	chosen, left, err := choose(all, "kernel, lint")
	if err != nil || names(chosen) != "artifacts kernel lint" || len(left) != len(all)-3 {
		t.Errorf("chose %q, left %d, %v", names(chosen), len(left), err)
	}
	if _, _, err := choose(all, "lunt"); err == nil || !strings.Contains(err.Error(), "lint") {
		t.Errorf("an unknown part: %v", err)
	}
	if chosen, left, err := choose(all, ""); err != nil || len(chosen) != len(all) || left != nil {
		t.Errorf("all: %d parts, %v, %v", len(chosen), left, err)
	}
}

func TestTestsAreFoundByFileAndName(t *testing.T) {
	dir := t.TempDir()
	for name, src := range map[string]string{
		"a/x_kernel_test.go": "package a\nimport \"testing\"\nfunc TestTwo(t *testing.T) {}\nfunc TestOne(t *testing.T) {}\nfunc TestMain(m *testing.M) {}\nfunc helper() {}\n",
		"a/x_test.go":        "package a\nimport \"testing\"\nfunc TestPlain(t *testing.T) {}\nfunc FuzzParse(f *testing.F) {}\n",
		"out/x_test.go":      "package b\nimport \"testing\"\nfunc TestBuilt(t *testing.T) {}\n",
	} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(src), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, tc := range []struct{ suffix, prefix, want string }{
		{"_kernel_test.go", "Test", "[{a [TestOne TestTwo]}]"},
		{"", "Fuzz", "[{a [FuzzParse]}]"},
		{"_envtest_test.go", "Test", "[]"},
	} {
		got, err := findTests(dir, tc.suffix, tc.prefix)
		if err != nil || fmt.Sprint(got) != tc.want {
			t.Errorf("findTests(%q, %q) = %v, %v; want %s", tc.suffix, tc.prefix, got, err, tc.want)
		}
	}
}

func TestDocumentsAndTestsNameEachOther(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("README.md", "`Testing` is a word, `TestA` is a test.")
	write("docs/a.md", "| P1 | `TestP1Late`, `FuzzB` |")
	write("x/x_test.go", "package x\nfunc TestA(t *T) {}\nfunc TestP1Late(t *T) {}\nfunc FuzzB(f *F) {}\n")
	if err := documentedTests(root); err != nil {
		t.Error(err)
	}
	write("docs/b.md", "`TestGone`")
	write("y/y_kernel_test.go", "//go:build kernel\n\npackage y\nfunc TestP2Else(t *T) {}\n")
	err := documentedTests(root)
	for _, want := range []string{"b.md names TestGone", "TestP2Else plays a row"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

func TestThisCheckoutsDocumentsAndTestsNameEachOther(t *testing.T) {
	if err := documentedTests(filepath.Join("..", "..")); err != nil {
		t.Error(err)
	}
}
