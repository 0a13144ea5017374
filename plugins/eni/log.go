package eni

import (
	"fmt"
	"io"
	"log/slog"
	"os"

	"github.com/branchline-cni/branchline/logfile"
)

// openLog opens the plugin's log, one JSON line per operation. Where it can't be opened the operation goes on without:
// a full or read-only disk must not keep pods from starting, or from being torn down.
func openLog(c Config) (*slog.Logger, func()) {
	var level slog.Level
	if err := level.UnmarshalText([]byte(c.LogLevel)); err != nil {
		level = slog.LevelInfo
	}
	var out io.WriteCloser = os.Stderr
	closeLog := func() {}
	if c.LogFile != "stderr" {
		f, err := logfile.Open(c.LogFile)
		if err != nil {
			fmt.Fprintf(os.Stderr, "aws-cni: no log file: %v\n", err)
			return slog.New(slog.DiscardHandler), closeLog
		}
		out, closeLog = f, func() { f.Close() }
	}
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})), closeLog
}
