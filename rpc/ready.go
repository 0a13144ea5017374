package rpc

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The ready stamp is how an executable, which lives for milliseconds, knows for how long the agent has been away: a file
// beside the agent's socket with this boot's id and the seconds since the boot at which the agent was last seen ready by
// itself. Neither a clock that is set nor a directory that outlives a reboot makes it lie.

// ReadyEvery is how often a ready agent writes its stamp.
const ReadyEvery = 20 * time.Second

func readyStamp(socket string) string { return filepath.Join(filepath.Dir(socket), "last-ready") }

// NoteReady writes the stamp beside the agent's socket.
func NoteReady(socket string) error {
	now, boot, err := sinceBoot()
	if err != nil {
		return err
	}
	name := readyStamp(socket)
	next := name + ".next"
	text := fmt.Sprintf("%s %d\n", boot, int64(now/time.Second))
	if err := errors.Join(os.WriteFile(next, []byte(text), 0o644), os.Rename(next, name)); err != nil {
		return fmt.Errorf("write the time of readiness for the CNI executable: %w", err)
	}
	return nil
}

// SinceReady is how long ago the agent was last ready. The error says that it has not been since this boot, or that
// nobody knows.
func SinceReady(socket string) (time.Duration, error) {
	text, err := os.ReadFile(readyStamp(socket))
	if err != nil {
		return 0, err
	}
	now, boot, err := sinceBoot()
	if err != nil {
		return 0, err
	}
	return parseReady(string(text), boot, now)
}

func parseReady(text, boot string, now time.Duration) (time.Duration, error) {
	id, seconds, ok := strings.Cut(strings.TrimSuffix(text, "\n"), " ")
	at, err := strconv.ParseInt(seconds, 10, 32)
	if !ok || err != nil || at < 0 {
		return 0, fmt.Errorf("the time of readiness, %.80q, can't be read", text)
	}
	age := now - time.Duration(at)*time.Second
	if id != boot || age < -time.Second {
		return 0, errors.New("the time of readiness is of another boot")
	}
	return max(age, 0), nil
}

// sinceBoot is the time since this boot, suspended time included, and the boot's id.
func sinceBoot() (now time.Duration, boot string, err error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return 0, "", fmt.Errorf("find out which boot this is: %w", err)
	}
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &t); err != nil {
		return 0, "", os.NewSyscallError("clock_gettime", err)
	}
	return time.Duration(t.Nano()), strings.TrimSpace(string(id)), nil
}
