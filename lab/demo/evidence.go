package demo

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// shownLines is how much of an output the reader sees; the file has all of it.
const shownLines = 24

// Evidence runs programs, shows what they print and keeps it.
type Evidence struct {
	dir string
	out io.Writer
	// env is what every program gets: nothing of the caller's credentials.
	env []string
	// changes counts the cloud's changes, where there is a cloud: see pause.
	changes func() uint64

	mu    sync.Mutex
	count int
	step  string
	seen  int // claims that were seen
}

// NewEvidence keeps outputs in dir, which is made if need be.
func NewEvidence(dir string, out io.Writer, path string) (*Evidence, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the evidence folder: %w", err)
	}
	env := []string{"PATH=" + path, "LC_ALL=C", "HOME=" + dir, "TZ=UTC"}
	return &Evidence{dir: dir, out: out, env: env}, nil
}

// Output is what one program printed.
type Output struct {
	Command string // as a reader would type it
	Stdout  string
	Stderr  string
	Code    int
}

// All is both streams, standard output first.
func (o Output) All() string { return o.Stdout + o.Stderr }

// Source is a way to run a program: on the machine, or inside an instance.
type Source func(ctx context.Context, argv []string) (Output, error)

// Local runs a program on the machine with the evidence's environment.
func (e *Evidence) Local(ctx context.Context, argv []string) (Output, error) {
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Env, c.Dir = e.env, e.dir
	if !strings.Contains(argv[0], "/") {
		p, err := lookPath(argv[0], e.env)
		if err != nil {
			return Output{}, err
		}
		c.Path, c.Err = p, nil
	}
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	o := Output{Command: shellLine(argv), Stdout: stdout.String(), Stderr: stderr.String()}
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		o.Code, err = exit.ExitCode(), nil
	}
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return o, fmt.Errorf("run %s: %w", o.Command, err)
	}
	return o, nil
}

func lookPath(name string, env []string) (string, error) {
	for _, v := range env {
		dirs, ok := strings.CutPrefix(v, "PATH=")
		if !ok {
			continue
		}
		for _, d := range filepath.SplitList(dirs) {
			p := filepath.Join(d, name)
			if fi, err := os.Stat(p); err == nil && !fi.IsDir() && fi.Mode()&0o111 != 0 {
				return p, nil
			}
		}
	}
	return "", fmt.Errorf("find %s on the walk-through's PATH: %w", name, exec.ErrNotFound)
}

// Step starts a step and says so.
func (e *Evidence) Step(name, title string) {
	e.mu.Lock()
	e.step = name
	e.mu.Unlock()
	fmt.Fprintf(e.out, "\n== Step %s: %s\n", name, title)
}

// Note tells the reader something that is not evidence.
func (e *Evidence) Note(format string, a ...any) {
	fmt.Fprintf(e.out, "   %s\n", fmt.Sprintf(format, a...))
}

// Seen says that a claim was shown.
func (e *Evidence) Seen(format string, a ...any) {
	e.mu.Lock()
	e.seen++
	e.mu.Unlock()
	fmt.Fprintf(e.out, "   [seen] %s\n", fmt.Sprintf(format, a...))
}

// Count of the claims that were shown.
func (e *Evidence) Count() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.seen
}

// keep writes an output to a file of its own and shows it.
func (e *Evidence) keep(o Output) {
	name := e.save(o)
	fmt.Fprintf(e.out, "   $ %s\n", o.Command)
	lines := strings.Split(strings.TrimRight(o.All(), "\n"), "\n")
	for i, l := range lines {
		if i == shownLines {
			fmt.Fprintf(e.out, "     … %d more lines in %s\n", len(lines)-i, name)
			break
		}
		if l != "" {
			fmt.Fprintf(e.out, "     %s\n", l)
		}
	}
}

// save writes an output to a file of its own and returns its name.
func (e *Evidence) save(o Output) string {
	e.mu.Lock()
	e.count++
	name := fmt.Sprintf("%03d-step%s-%s.txt", e.count, e.step, slug(o.Command))
	e.mu.Unlock()
	text := fmt.Sprintf("# %s\n$ %s\n%s", time.Now().UTC().Format(time.RFC3339), o.Command, o.All())
	if o.Code != 0 {
		text += fmt.Sprintf("# exit code %d\n", o.Code)
	}
	if err := os.WriteFile(filepath.Join(e.dir, name), []byte(text), 0o644); err != nil {
		e.Note("evidence file %s was not written: %v", name, err)
	}
	return name
}

// Do runs a program once, keeps what it printed, and fails if the program failed.
func (e *Evidence) Do(ctx context.Context, run Source, argv ...string) (Output, error) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	o, err := run(ctx, argv)
	if err != nil {
		return o, err
	}
	e.keep(o)
	if o.Code != 0 {
		return o, fmt.Errorf("%s: exit code %d: %s", o.Command, o.Code, strings.TrimSpace(o.All()))
	}
	return o, nil
}

// Await runs a program again and again until its output shows the claim, and keeps that output. While the claim is
// not there, check says what is missing. A program that fails is tried again too: the API server may be restarting.
func (e *Evidence) Await(ctx context.Context, limit time.Duration, claim string, check func(Output) error, run Source, argv ...string) (Output, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not seen within %s", limit))
	defer cancel()
	var last Output
	var missing error
	for {
		pause := e.pause(argv)
		one, stop := context.WithTimeout(ctx, 30*time.Second)
		o, err := run(one, argv)
		stop()
		switch {
		case err != nil:
			missing = err
		case o.Code != 0:
			last, missing = o, fmt.Errorf("exit code %d: %s", o.Code, strings.TrimSpace(o.All()))
		default:
			last = o
			if missing = check(o); missing == nil {
				e.keep(o)
				e.Seen("%s", claim)
				return o, nil
			}
		}
		if pause(ctx); ctx.Err() != nil {
			e.keep(last)
			return last, fmt.Errorf("%q: %w: %w", claim, context.Cause(ctx), missing)
		}
	}
}

// Between two looks at what a program says: a second, and while the cloud has not changed up to atRest for the AWS CLI,
// which takes a second of CPU to say the same again.
const (
	betweenLooks = time.Second
	atRest       = 5 * time.Second
)

// pause is called before a program is run, and what it returns after that: it waits until the program may have something
// else to say.
func (e *Evidence) pause(argv []string) func(context.Context) {
	before := uint64(0)
	gated := e.changes != nil && argv[0] == "aws"
	if gated {
		before = e.changes()
	}
	return func(ctx context.Context) {
		rest := time.After(atRest)
		for once := true; once || gated && e.changes() == before; once = false {
			select {
			case <-ctx.Done():
				return
			case <-rest:
				return
			case <-time.After(betweenLooks):
			}
		}
	}
}

// shellLine shows a command as a reader would type it, with the programs' names only.
func shellLine(argv []string) string {
	parts := make([]string, len(argv))
	for i, a := range argv {
		if i == 0 {
			a = filepath.Base(a)
		}
		if a == "" || strings.ContainsAny(a, " \t\n\"'$&|;<>(){}[]*?`\\") {
			a = "'" + strings.ReplaceAll(a, "'", `'\''`) + "'"
		}
		parts[i] = a
	}
	return strings.Join(parts, " ")
}

// slug is a part of a file's name made from a command.
func slug(s string) string {
	var b strings.Builder
	for _, r := range s {
		switch {
		case r >= 'a' && r <= 'z', r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			b.WriteRune(r)
		case b.Len() > 0 && !strings.HasSuffix(b.String(), "-"):
			b.WriteByte('-')
		}
		if b.Len() >= 60 {
			break
		}
	}
	return strings.Trim(b.String(), "-")
}

// oneLine wants a line that has all of the texts.
func oneLine(texts ...string) func(Output) error {
	return func(o Output) error {
		for line := range strings.Lines(o.Stdout) {
			if contains(texts...)(Output{Stdout: line}) == nil {
				return nil
			}
		}
		return fmt.Errorf("no line has all of %q", texts)
	}
}

// contains is a check for an output that has all the words.
func contains(words ...string) func(Output) error {
	return func(o Output) error {
		for _, w := range words {
			if !strings.Contains(o.All(), w) {
				return fmt.Errorf("%q is not in the output of %s", w, o.Command)
			}
		}
		return nil
	}
}

// lacks is a check for an output that has none of the words.
func lacks(words ...string) func(Output) error {
	return func(o Output) error {
		for _, w := range words {
			if strings.Contains(o.All(), w) {
				return fmt.Errorf("%q is still in the output of %s: %s", w, o.Command, strings.TrimSpace(o.All()))
			}
		}
		return nil
	}
}

// equals is a check for an output that is one value, surrounding space aside.
func equals(want string) func(Output) error {
	return func(o Output) error {
		if got := strings.TrimSpace(o.Stdout); got != want {
			return fmt.Errorf("%s printed %q, want %q", o.Command, got, want)
		}
		return nil
	}
}

// both joins checks.
func both(checks ...func(Output) error) func(Output) error {
	return func(o Output) error {
		for _, c := range checks {
			if err := c(o); err != nil {
				return err
			}
		}
		return nil
	}
}
