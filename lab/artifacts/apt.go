package artifacts

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// aptState is where apt knows from what it answers: its lists, its configuration and what is installed.
var aptState = []string{"/var/lib/apt/lists", "/etc/apt", "/var/lib/dpkg/status"}

// askApt is what a program of apt's prints. As long as the files that it answers from are the same it is not asked again:
// where nobody keeps its own cache it takes a second or two of CPU over each answer, and a lab has a dozen questions.
func (c *Cache) askApt(ctx context.Context, argv ...string) ([]byte, error) {
	state, err := stateOf(aptState...)
	if err != nil {
		return nil, fmt.Errorf("look at apt's files: %w", err)
	}
	dir, err := c.entry(ctx, recipe{
		kind: "apt", key: key(append([]string{state}, argv...)...), title: "what " + argv[0] + " says of " + argv[len(argv)-1],
		deadline: 5 * time.Minute,
		build: func(ctx context.Context, dir string) error {
			out, err := command{env: []string{"LC_ALL=C"}, argv: argv}.run(ctx)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(dir, "answer"), out, 0o644)
		},
	})
	if err != nil {
		return nil, err
	}
	return os.ReadFile(filepath.Join(dir, "answer"))
}

// stateOf tells states of files and of all in folders apart, by names, sizes and times. What isn't there is a state, too.
func stateOf(paths ...string) (string, error) {
	var b strings.Builder
	for _, path := range paths {
		err := filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
			if os.IsNotExist(err) {
				return nil
			}
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, "%q %v %d %d\n", p, info.Mode(), info.Size(), info.ModTime().UnixNano())
			return nil
		})
		if err != nil {
			return "", err
		}
	}
	return key(b.String()), nil
}
