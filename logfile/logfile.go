// Package logfile appends to a log file that is kept to a size: when it is full it becomes <path>.1, the older ones move
// on, the oldest goes. The live file always has the path itself, which is where monitoring reads. The agent writes one
// file for its life, CNI executables open theirs for one line each and many at once: both are served.
//
// It is not for logs of which no line may be lost: what a killed process has not written is gone, and a rotation that
// can't be done is put off, as a full disk must not stop pods.
package logfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// Bounds of a log: the live file and Old files before it, of MaxSize each and at most one write more.
const (
	MaxSize = 50 << 20
	Old     = 3
)

// File is a log file that is open. It is an io.WriteCloser for any number of goroutines; each Write is a whole line.
type File struct {
	path   string
	limits limits

	mu   sync.Mutex
	f    *os.File
	size int64 // as far as is known: other processes may write too
	next int64 // the size at which to rotate
}

type limits struct {
	size int64
	old  int
}

// Open opens path for appending, makes its folder where it is missing, and rotates the file where it is full.
func Open(path string) (*File, error) { return open(path, limits{MaxSize, Old}) }

func open(path string, l limits) (*File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("open log file %s: %w", path, err)
	}
	w := &File{path: path, limits: l}
	if err := w.reopen(); err != nil {
		return nil, err
	}
	if w.size >= w.next {
		w.rotate()
	}
	return w, nil
}

// reopen opens what has the path now.
func (w *File) reopen() error {
	// O_APPEND: processes that write at once write whole lines.
	f, err := os.OpenFile(w.path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o640)
	if err != nil {
		return fmt.Errorf("open log file: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		f.Close()
		return fmt.Errorf("open log file: %w", err)
	}
	if w.f != nil {
		w.f.Close()
	}
	w.f, w.size, w.next = f, info.Size(), w.limits.size
	return nil
}

// Write appends p as it is.
func (w *File) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.size > 0 && w.size+int64(len(p)) > w.next {
		w.rotate()
	}
	n, err := w.f.Write(p)
	w.size += int64(n)
	return n, err
}

// Close closes the file.
func (w *File) Close() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.f.Close()
}

// rotate puts the full file aside and opens a new one. Where that fails the file goes on to be written, and it is tried
// again after some more.
func (w *File) rotate() {
	if err := w.putAside(os.Rename); err == nil {
		err = w.reopen()
		if err == nil {
			return
		}
	}
	w.next = w.size + w.limits.size/16
}

var errBusy = errors.New("another process rotates the file")

// putAside moves the file that is open out of the way, unless somebody has done so: it is locked meanwhile, and only
// what still has the path is moved.
func (w *File) putAside(rename func(from, to string) error) error {
	info, err := w.f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no regular file", w.path)
	}
	if err := unix.Flock(int(w.f.Fd()), unix.LOCK_EX|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return errBusy
	} else if err != nil {
		return err
	}
	defer unix.Flock(int(w.f.Fd()), unix.LOCK_UN)
	live, err := os.Stat(w.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(live, info) {
		return nil // it has been moved: only to be opened again
	}
	if err != nil {
		return err
	}
	return shift(w.path, w.limits.old, rename)
}

// shift moves path to path.1, path.1 to path.2 and so on, up to the first number that is free: a gap is what a process that
// was killed amid its renames has left, and is filled without losing a file. Without a gap the oldest is replaced.
func shift(path string, old int, rename func(from, to string) error) error {
	free := 1
	for ; free < old; free++ {
		if _, err := os.Lstat(numbered(path, free)); errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	for n := free; n > 0; n-- {
		if err := rename(numbered(path, n-1), numbered(path, n)); err != nil {
			return err
		}
	}
	return nil
}

func numbered(path string, n int) string {
	if n == 0 {
		return path
	}
	return fmt.Sprintf("%s.%d", path, n)
}
