package artifacts

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// DirEnv names the environment variable that moves the cache to another folder.
const DirEnv = "BRANCHLINE_CACHE"

// Old entries of a kind are removed when a new one is made: those not used for
// this long, as long as newer ones stay.
const (
	keepUnused = 14 * 24 * time.Hour
	keepNewest = 4
)

// Cache is a folder of finished artifacts. It is safe for concurrent use, by
// several processes too.
type Cache struct {
	root string
	out  *progress
}

// Open returns the cache in $BRANCHLINE_CACHE, or in branchline under the user's
// cache folder ($XDG_CACHE_HOME, ~/.cache), and makes the folder if need be.
func Open() (*Cache, error) {
	dir := os.Getenv(DirEnv)
	if dir == "" {
		base, err := os.UserCacheDir()
		if err != nil {
			return nil, fmt.Errorf("find the user's cache folder (or set %s): %w", DirEnv, err)
		}
		dir = filepath.Join(base, "branchline")
	}
	return OpenDir(dir)
}

// OpenDir returns the cache in dir.
func OpenDir(dir string) (*Cache, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open cache %s: %w", dir, err)
	}
	for _, d := range []string{dir, filepath.Join(dir, "tmp"), filepath.Join(dir, "locks")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("open cache: %w", err)
		}
	}
	return &Cache{root: dir, out: newProgress(os.Stderr)}, nil
}

// Dir is the folder that holds the cache.
func (c *Cache) Dir() string { return c.root }

// recipe says how one entry is made.
type recipe struct {
	kind     string        // folder below the cache's; letters, digits, dashes
	key      string        // hash of the inputs
	title    string        // for progress lines: "Kubernetes v1.34.4"
	usually  string        // for progress lines: how long it takes, cold
	deadline time.Duration // for the whole build
	build    func(ctx context.Context, dir string) error
}

// entry returns the folder of the finished artifact and makes it first if it is
// not there.
func (c *Cache) entry(ctx context.Context, r recipe) (string, error) {
	final := filepath.Join(c.root, r.kind, r.key)
	if usable(final) {
		return final, nil
	}
	unlock, err := c.lock(ctx, r)
	if err != nil {
		return "", err
	}
	defer unlock()
	if usable(final) { // somebody else made it while we waited
		return final, nil
	}

	// The lock makes the name ours, so what an interrupted build left is here.
	tmp := filepath.Join(c.root, "tmp", r.kind+"-"+r.key)
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("remove what an earlier build of %s left: %w", r.title, err)
	}
	if err := os.MkdirAll(tmp, 0o755); err != nil {
		return "", fmt.Errorf("make a folder for %s: %w", r.title, err)
	}
	defer os.RemoveAll(tmp)

	done := c.out.start(r.title, r.usually)
	bctx, cancel := context.WithTimeoutCause(ctx, r.deadline, fmt.Errorf("it took longer than %s", r.deadline))
	defer cancel()
	err = r.build(bctx, tmp)
	if err == nil {
		err = context.Cause(bctx) // an interrupted step may have ended early and well
	} else if cause := context.Cause(bctx); cause != nil {
		err = fmt.Errorf("%w (%w)", cause, err)
	}
	if err == nil {
		// Unpacking may have given the folder an old time, and prune goes by it.
		now := time.Now()
		err = os.Chtimes(tmp, now, now)
	}
	if err == nil {
		if err = os.MkdirAll(filepath.Dir(final), 0o755); err == nil {
			err = os.Rename(tmp, final)
		}
	}
	done(err)
	if err != nil {
		return "", fmt.Errorf("make %s: %w", r.title, err)
	}
	c.prune(r.kind, r.key)
	return final, nil
}

// usable says whether an entry is there, and notes that it was used.
func usable(dir string) bool {
	if _, err := os.Stat(dir); err != nil {
		return false
	}
	now := time.Now()
	_ = os.Chtimes(dir, now, now) // only orders what prune removes
	return true
}

// lock takes the entry's lock file. It gives up when ctx ends.
func (c *Cache) lock(ctx context.Context, r recipe) (unlock func(), err error) {
	path := filepath.Join(c.root, "locks", r.kind+"-"+r.key)
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", r.title, err)
	}
	told := false
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) && !errors.Is(err, syscall.EINTR) {
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, err)
		}
		if !told {
			told = true
			c.out.say("%s: waiting, another process is making it", r.title)
		}
		// flock cannot be waited for together with a context.
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("wait for the lock of %s: %w", r.title, context.Cause(ctx))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// prune removes entries of the kind that nobody used for long. It never removes
// current, and failing to remove is no error: the next build tries again.
func (c *Cache) prune(kind, current string) {
	dir := filepath.Join(c.root, kind)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	type used struct {
		name string
		at   time.Time
	}
	var all []used
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.Name() != current {
			all = append(all, used{e.Name(), info.ModTime()})
		}
	}
	slices.SortFunc(all, func(a, b used) int { return cmp.Compare(b.at.UnixNano(), a.at.UnixNano()) })
	for i, e := range all {
		unusedFor := keepUnused
		if strings.HasPrefix(kind, "go-") { // one per edit of the source
			unusedFor = 6 * time.Hour
		}
		if i+1 >= keepNewest && time.Since(e.at) > unusedFor {
			_ = os.RemoveAll(filepath.Join(dir, e.name))
		}
	}
}
