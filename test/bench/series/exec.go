package series

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/test/bench/contender"
)

// opDeadline is beyond the deadline of any contender's own.
const opDeadline = 100 * time.Second

// feedDeadline is beyond what a virtual machine on a busy machine stands still for.
const feedDeadline = 30 * time.Second

// outcome is one run of an executable that succeeded.
type outcome struct {
	wall, cpu time.Duration
	stdout    []byte
}

// execute runs an executable, in the network namespace of the calling thread, from its start to its end. What it reads
// and writes fits into pipes' buffers, so that nobody but the executable runs meanwhile.
func execute(ctx context.Context, inv contender.Invocation, extra ...*os.File) (outcome, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, opDeadline, fmt.Errorf("not done within %v", opDeadline))
	defer cancel()
	c := exec.CommandContext(ctx, inv.Argv[0], inv.Argv[1:]...)
	c.Env, c.ExtraFiles = inv.Env, extra
	if c.Env == nil {
		c.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	}
	var open []*os.File
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	pipe := func() (r, w *os.File, err error) {
		if r, w, err = os.Pipe(); err == nil {
			open = append(open, r, w)
		}
		return r, w, err
	}
	in, feed, err := pipe()
	if err != nil {
		return outcome{}, err
	}
	// Nobody reads yet: more than the pipe holds would wait for ever.
	if err := feed.SetWriteDeadline(time.Now().Add(feedDeadline)); err != nil {
		return outcome{}, err
	}
	if len(inv.Stdin) > 0 {
		if _, err := feed.Write(inv.Stdin); err != nil {
			return outcome{}, fmt.Errorf("%d bytes on stdin: %w", len(inv.Stdin), err)
		}
	}
	out, outW, err := pipe()
	if err != nil {
		return outcome{}, err
	}
	feed.Close()
	c.Stdin, c.Stdout, c.Stderr = in, outW, outW

	start := time.Now()
	if err := c.Start(); err != nil {
		return outcome{}, err
	}
	err = c.Wait()
	o := outcome{wall: time.Since(start), cpu: c.ProcessState.UserTime() + c.ProcessState.SystemTime()}
	outW.Close()
	o.stdout, _ = io.ReadAll(out)
	if err != nil {
		if cause := context.Cause(ctx); cause != nil {
			err = errors.Join(err, cause)
		}
		return outcome{}, fmt.Errorf("%s: %w: %s", filepath.Base(inv.Argv[0]), err, firstLines(o.stdout))
	}
	return o, nil
}

// peakMemory runs an executable below the program peak and returns what that tells, in KiB.
func peakMemory(ctx context.Context, bin string, inv contender.Invocation) (kib int64, o outcome, err error) {
	r, w, err := os.Pipe()
	if err != nil {
		return 0, outcome{}, err
	}
	defer r.Close()
	defer w.Close()
	inv.Argv = append([]string{filepath.Join(bin, "peak")}, inv.Argv...)
	if o, err = execute(ctx, inv, w); err != nil {
		return 0, outcome{}, err
	}
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		return 0, outcome{}, err
	}
	kib, err = strconv.ParseInt(string(text), 10, 64)
	if err != nil {
		return 0, outcome{}, fmt.Errorf("the peak memory: %w", err)
	}
	return kib, o, nil
}

// firstLines shortens what a contender has printed, for an error.
func firstLines(b []byte) string {
	const most = 400
	text := strings.Join(strings.Fields(string(bytes.TrimSpace(b))), " ")
	if len(text) > most {
		return text[:most] + " …"
	}
	return text
}
