package instance

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab/instance/guest"
)

// pairedAgent joins the supervisor's side to a guest agent in this process, without an instance around it.
func pairedAgent(t *testing.T) *agent {
	t.Helper()
	ours, theirs := net.Pipe()
	go guest.NewServer(theirs, func() error { return errors.New("not here") }).Serve()
	a := newAgent(ours, t.TempDir())
	t.Cleanup(func() { ours.Close(); theirs.Close() })
	select {
	case <-a.ready:
	case <-time.After(10 * time.Second):
		t.Fatal("the agent did not announce itself")
	}
	return a
}

func TestAgentRunsCommands(t *testing.T) {
	a := pairedAgent(t)
	t.Run("to their end", func(t *testing.T) {
		r, err := a.exec(t.Context(), Command{Argv: []string{"sh", "-c", `cat; echo "$X" >&2; exit 7`}, Env: []string{"X=y"}, Stdin: []byte("in")})
		if err != nil || string(r.Stdout) != "in" || string(r.Stderr) != "y\n" || r.ExitCode != 7 {
			t.Errorf("%+v, %v", r, err)
		}
	})
	t.Run("streaming when asked to", func(t *testing.T) {
		var out strings.Builder
		r, err := a.exec(t.Context(), Command{Argv: []string{"echo", "hello"}, Stdout: &out})
		if err != nil || out.String() != "hello\n" || r.Stdout != nil {
			t.Errorf("%q, %+v, %v", out.String(), r, err)
		}
	})
	t.Run("not waiting for what they leave in the background", func(t *testing.T) {
		began := time.Now()
		if r, err := a.exec(t.Context(), Command{Argv: []string{"sh", "-c", "echo done; sleep 20 &"}}); err != nil || string(r.Stdout) != "done\n" {
			t.Errorf("%+v, %v", r, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
	t.Run("until the context ends", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := a.exec(ctx, Command{Argv: []string{"sleep", "20"}}); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v", err)
		}
	})
	t.Run("in the background, with a log", func(t *testing.T) {
		p, err := a.start(t.Context(), "x", filepath.Join(t.TempDir(), "x.log"), Command{Argv: []string{"sleep", "20"}})
		if err != nil {
			t.Fatal(err)
		}
		if err := p.Signal(t.Context(), 15); err != nil {
			t.Fatal(err)
		}
		if code, err := p.Wait(t.Context()); code != 128+15 || err != nil {
			t.Errorf("%d, %v", code, err)
		}
		if err := p.Signal(t.Context(), 15); !errors.Is(err, ErrNotFound) {
			t.Errorf("signal after the end: %v", err)
		}
	})
	t.Run("but not without one, or under a name that is a path", func(t *testing.T) {
		if _, err := a.exec(t.Context(), Command{}); err == nil {
			t.Error("empty command ran")
		}
		if _, err := a.start(t.Context(), "../x", "/dev/null", Command{Argv: []string{"true"}}); err == nil {
			t.Error("a path was taken for a name")
		}
	})
}

func TestEndOfTheConnectionFailsWhatRuns(t *testing.T) {
	a := pairedAgent(t)
	p, err := a.start(t.Context(), "x", filepath.Join(t.TempDir(), "x.log"), Command{Argv: []string{"sleep", "1"}})
	if err != nil {
		t.Fatal(err)
	}
	a.c.Close()
	if _, err := p.Wait(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("wait: %v, want ErrClosed", err)
	}
	if _, err := a.exec(t.Context(), Command{Argv: []string{"true"}}); !errors.Is(err, ErrClosed) {
		t.Errorf("exec: %v, want ErrClosed", err)
	}
}
