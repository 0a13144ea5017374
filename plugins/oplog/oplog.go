// Package oplog opens the log of a CNI executable: one JSON line per operation. It is not a logger for programs that
// run on: nothing is buffered, and the file is looked at once, when it is opened.
package oplog

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/branchline-cni/branchline/logfile"
)

// Open opens the log of a program: file is a path or "stderr", level a name of slog's. Where it can't be opened the
// operation goes on without, and says so on stderr: a full or read-only disk must not keep pods from starting, or from
// being torn down.
func Open(program, file, level string) (*slog.Logger, func()) {
	var l slog.Level
	if err := l.UnmarshalText([]byte(level)); err != nil {
		l = slog.LevelInfo
	}
	var out io.WriteCloser = os.Stderr
	closeLog := func() {}
	if file != "stderr" {
		f, err := logfile.Open(file)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: no log file: %v\n", program, err)
			return slog.New(slog.DiscardHandler), closeLog
		}
		out, closeLog = f, func() { f.Close() }
	}
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: l})), closeLog
}
