package logfile

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// lines are those of all files, oldest first.
func lines(t testing.TB, path string) (all []string, files int) {
	t.Helper()
	for n := 20; n >= 0; n-- {
		b, err := os.ReadFile(numbered(path, n))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		files++
		text := string(b)
		if text != "" && !strings.HasSuffix(text, "\n") {
			t.Fatalf("%s ends in half a line: %q", numbered(path, n), text)
		}
		all = append(all, strings.Split(strings.TrimSuffix(text, "\n"), "\n")...)
	}
	return slices.DeleteFunc(all, func(l string) bool { return l == "" }), files
}

func TestALogThatIsWrittenForLongStaysWithinItsBounds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "sub", "ipamd.log")
	w, err := open(path, limits{100, 3})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 1000 {
		if _, err := fmt.Fprintf(w, "line %03d\n", n); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	all, files := lines(t, path)
	if files != 4 || all[len(all)-1] != "line 999" || len(all) < 3*11 {
		t.Fatalf("%d files, %d lines up to %q", files, len(all), all[len(all)-1])
	}
	for i, l := range all {
		if want := fmt.Sprintf("line %03d", 1000-len(all)+i); l != want {
			t.Fatalf("line %d is %q, want %q: something is missing in between", i, l, want)
		}
	}
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(entries) != 4 {
		t.Fatalf("%v, %v", entries, err)
	}
	for _, e := range entries {
		if info, err := e.Info(); err != nil || info.Size() > 100 {
			t.Errorf("%s: %v, %v", e.Name(), info, err)
		}
	}
}

// Executables open the file for a line each, and many at once; the files must suffice for all lines here, so that none is lost.
func TestManyThatOpenTheLogForALineLoseNone(t *testing.T) {
	path := filepath.Join(t.TempDir(), "plugin.log")
	const writers, each = 8, 50
	var wg sync.WaitGroup
	for writer := range writers {
		wg.Go(func() {
			for n := range each {
				w, err := open(path, limits{600, 15})
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := fmt.Fprintf(w, "%d/%03d\n", writer, n); err != nil {
					t.Error(err)
				}
				w.Close()
			}
		})
	}
	wg.Wait()
	all, files := lines(t, path)
	slices.Sort(all)
	if len(slices.Compact(all)) != writers*each || files < 3 {
		t.Fatalf("%d lines in %d files, want %d", len(all), files, writers*each)
	}
}

// A process that is killed amid a rotation leaves a state that the next one goes on from, without losing a file for it.
func TestKilledAmidItsRenamesALogLosesNothing(t *testing.T) {
	for killed := range 5 {
		path := filepath.Join(t.TempDir(), "ipamd.log")
		for n, name := range []string{".3", ".2", ".1", ""} {
			if err := os.WriteFile(path+name, fmt.Appendf(nil, "%s%d\n", strings.Repeat("x", 100), n), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		dead := errors.New("killed")
		w, err := open(path, limits{1000, 4})
		if err != nil {
			t.Fatal(err)
		}
		calls := 0
		err = w.putAside(func(from, to string) error {
			if calls++; calls > killed {
				return dead
			}
			return os.Rename(from, to)
		})
		if want := killed < 4; errors.Is(err, dead) != want {
			t.Fatalf("killed after %d renames: %v", killed, err)
		}
		w.Close()
		next, err := open(path, limits{50, 4})
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintln(next, "after")
		next.Close()
		all, _ := lines(t, path)
		if len(all) != 5 || all[4] != "after" || !slices.IsSorted(all[:4]) {
			t.Errorf("killed after %d renames: %q", killed, all)
		}
	}
}

// Whatever is written, by whichever of two processes, rotated away by somebody else at times: what is there at the end is the
// last lines of each in order, and it is bounded.
func TestAnyMixOfWritersStaysInOrderAndBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		dir, err := os.MkdirTemp("", "logfile")
		if err != nil {
			t.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "l")
		l := limits{int64(rapid.IntRange(1, 200).Draw(t, "size")), rapid.IntRange(1, 4).Draw(t, "old")}
		var writers [2]*File
		longest := int64(0)
		for n := range rapid.IntRange(1, 80).Draw(t, "steps") {
			i := rapid.IntRange(0, 1).Draw(t, "writer")
			if writers[i] == nil || rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				if writers[i] != nil {
					writers[i].Close()
				}
				if writers[i], err = open(path, l); err != nil {
					t.Fatal(err)
				}
			}
			if rapid.IntRange(0, 15).Draw(t, "foreign rotation") == 0 {
				os.Remove(path)
			}
			line := fmt.Sprintf("%d %06d %s\n", i, n, strings.Repeat("x", rapid.IntRange(0, 60).Draw(t, "long")))
			if _, err := writers[i].Write([]byte(line)); err != nil {
				t.Fatal(err)
			}
			longest = max(longest, int64(len(line)))
		}
		for _, w := range writers {
			if w != nil {
				w.Close()
			}
		}
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) > l.old+1 {
			t.Fatalf("%v, %v", entries, err)
		}
		for _, e := range entries {
			// Each of the two may add up to the bound without knowing of the other's.
			if info, err := e.Info(); err != nil || info.Size() > 2*(l.size+longest) {
				t.Fatalf("%s: %d bytes of %d, %v", e.Name(), info.Size(), l.size, err)
			}
		}
	})
}

func TestWhatCannotBeRotatedIsWrittenOn(t *testing.T) {
	w, err := open("/dev/null", limits{10, 2})
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := fmt.Fprintln(w, "a line"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	// Its folder is gone: there is nowhere to open a new one.
	dir := filepath.Join(t.TempDir(), "sub")
	if w, err = open(filepath.Join(dir, "l"), limits{10, 2}); err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		if _, err := fmt.Fprintln(w, "a line"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := open(filepath.Join("/dev/null", "l"), limits{10, 2}); err == nil {
		t.Error("a log below a file")
	}
}
