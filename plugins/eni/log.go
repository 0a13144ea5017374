package eni

import (
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
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
		f, err := openLogFile(c.LogFile)
		if err != nil {
			fmt.Fprintf(os.Stderr, "aws-cni: no log file: %v\n", err)
			return slog.New(slog.DiscardHandler), closeLog
		}
		out, closeLog = f, func() { f.Close() }
	}
	return slog.New(slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})), closeLog
}

func openLogFile(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	// O_APPEND: executables that run at once write whole lines.
	return os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
}
