package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newTestEvidence(t *testing.T) (*Evidence, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	e, err := NewEvidence(t.TempDir(), &out, "/usr/bin:/bin")
	if err != nil {
		t.Fatal(err)
	}
	return e, &out
}

func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	found := map[string]string{}
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range names {
		b, err := os.ReadFile(n)
		if err != nil {
			t.Fatal(err)
		}
		found[filepath.Base(n)] = string(b)
	}
	return found
}

func TestEachOutputIsKeptWithItsCommand(t *testing.T) {
	e, out := newTestEvidence(t)
	e.Step("3", "a step")
	if _, err := e.Do(t.Context(), e.Local, "sh", "-c", "echo one; echo two >&2"); err != nil {
		t.Fatal(err)
	}
	got := files(t, e.dir)
	text := got["001-step3-sh-c-echo-one-echo-two-2.txt"]
	if len(got) != 1 || !strings.Contains(text, "$ sh -c 'echo one; echo two >&2'\none\ntwo\n") {
		t.Errorf("files: %q", got)
	}
	if !strings.Contains(out.String(), "     one\n     two\n") {
		t.Errorf("shown: %q", out)
	}
}

func TestAFailedProgramFailsTheStepAndIsKept(t *testing.T) {
	e, _ := newTestEvidence(t)
	_, err := e.Do(t.Context(), e.Local, "sh", "-c", "echo why >&2; exit 3")
	if err == nil || !strings.Contains(err.Error(), "exit code 3") || !strings.Contains(err.Error(), "why") {
		t.Errorf("error: %v", err)
	}
	if n := len(files(t, e.dir)); n != 1 {
		t.Errorf("%d files, want 1", n)
	}
}

func TestNothingOfTheCallersCredentialsReachesAProgram(t *testing.T) {
	t.Setenv("AWS_ACCESS_KEY_ID", "real")
	t.Setenv("KUBECONFIG", "/real")
	e, _ := newTestEvidence(t)
	o, err := e.Local(t.Context(), []string{"env"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(o.Stdout, "real") {
		t.Errorf("environment: %s", o.Stdout)
	}
}

func TestAProgramThatIsNotThereIsNamed(t *testing.T) {
	e, _ := newTestEvidence(t)
	if _, err := e.Local(t.Context(), []string{"no-such-program"}); err == nil || !strings.Contains(err.Error(), "no-such-program") {
		t.Errorf("error: %v", err)
	}
}

func TestAClaimIsSeenOnlyWhenItsOutputShowsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, out := newTestEvidence(t)
		calls := 0
		run := func(context.Context, []string) (Output, error) {
			calls++
			switch calls {
			case 1:
				return Output{}, errors.New("the API server is away")
			case 2:
				return Output{Code: 1, Stderr: "claim"}, nil // a program that failed shows nothing
			default:
				return Output{Command: "show", Stdout: fmt.Sprintf("claim in call %d", calls)}, nil
			}
		}
		if _, err := e.Await(t.Context(), time.Minute, "it is so", contains("claim"), run, "show"); err != nil {
			t.Fatal(err)
		}
		if calls != 3 || e.Count() != 1 || !strings.Contains(out.String(), "[seen] it is so") {
			t.Errorf("%d calls, %d claims, shown %q", calls, e.Count(), out)
		}
	})
}

func TestAClaimThatIsNotSeenInTimeIsAnErrorThatSaysWhatIsMissing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newTestEvidence(t)
		run := func(context.Context, []string) (Output, error) {
			return Output{Command: "show", Stdout: "nothing"}, nil
		}
		_, err := e.Await(t.Context(), time.Minute, "it is so", contains("claim"), run, "show")
		if err == nil {
			t.Fatal("no error")
		}
		for _, want := range []string{"it is so", "within 1m0s", `"claim" is not in the output of show`} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q lacks %q", err, want)
			}
		}
		if e.Count() != 0 || len(files(t, e.dir)) != 1 {
			t.Errorf("%d claims, files %v", e.Count(), files(t, e.dir))
		}
	})
}

func TestTheAWSCLIIsRunAgainOnceTheCloudHasChanged(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e, _ := newTestEvidence(t)
		began := time.Now()
		// The cloud changes once, at a moment between two looks.
		e.changes = func() uint64 { return uint64(min(time.Since(began)/(1500*time.Millisecond), 1)) }
		var looks []time.Duration
		run := func(context.Context, []string) (Output, error) {
			looks = append(looks, time.Since(began))
			return Output{Command: "aws", Stdout: fmt.Sprintf("claim %d", len(looks))}, nil
		}
		for _, program := range []string{"aws", "kubectl"} {
			looks, began = nil, time.Now()
			if _, err := e.Await(t.Context(), time.Minute, "it is so", contains("claim 3"), run, program); err != nil {
				t.Fatal(err)
			}
			want := map[string][]time.Duration{"aws": {0, 2 * betweenLooks, 2*betweenLooks + atRest}, "kubectl": {0, betweenLooks, 2 * betweenLooks}}[program]
			if !slices.Equal(looks, want) {
				t.Errorf("%s was run at %v, want %v", program, looks, want)
			}
		}
	})
}

func TestChecks(t *testing.T) {
	o := Output{Command: "c", Stdout: " a b \n"}
	for name, tc := range map[string]struct {
		check func(Output) error
		ok    bool
	}{
		"contains all":    {contains("a", "b"), true},
		"contains one":    {contains("a", "c"), false},
		"lacks":           {lacks("c"), true},
		"lacks one":       {lacks("c", "b"), false},
		"equals":          {equals("a b"), true},
		"equals not":      {equals("a"), false},
		"both":            {both(contains("a"), lacks("c")), true},
		"both but second": {both(contains("a"), lacks("b")), false},
	} {
		if err := tc.check(o); (err == nil) != tc.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
