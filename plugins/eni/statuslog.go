package eni

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unicode"

	"github.com/containernetworking/cni/pkg/types"
)

// sayStatusEvery is how often a STATUS that goes on failing is an error in the log: the runtime asks every few seconds.
const sayStatusEvery = 5 * time.Minute

// statusStamp is what one run of the executable leaves for the next: the kind of failure that was said last, and by the
// file's time when. It is there only while STATUS fails.
func (o *operation) statusStamp() string {
	return filepath.Join(filepath.Dir(o.config.lockPath()), "status-failed")
}

// sayStatus says whether the outcome of a STATUS is news: a failure of another kind than the last one, the same after
// sayStatusEvery, or the end of failing. Where the stamp can't be kept, each failure is.
func (o *operation) sayStatus(err error, now time.Time) bool {
	if o.config.Socket == "" { // the configuration is what failed
		return err != nil
	}
	stamp := o.statusStamp()
	said, rerr := os.ReadFile(stamp)
	if err == nil {
		return rerr == nil && os.Remove(stamp) == nil
	}
	kind := statusKind(err)
	if info, serr := os.Stat(stamp); rerr == nil && serr == nil && string(said) == kind {
		if age := now.Sub(info.ModTime()); age >= 0 && age < sayStatusEvery {
			return false
		}
	}
	if werr := os.WriteFile(stamp, []byte(kind), 0o644); werr != nil && !errors.Is(werr, fs.ErrNotExist) {
		o.note("stamp", werr.Error())
	}
	return true
}

// statusKind leaves out of an error what changes with time alone: its numbers, and all but what it begins with.
func statusKind(err error) string {
	var e *types.Error
	if !errors.As(err, &e) {
		return err.Error()
	}
	begins, _, _ := strings.Cut(e.Msg, ";")
	return fmt.Sprintf("%d %s", e.Code, strings.Map(func(r rune) rune {
		if unicode.IsDigit(r) {
			return -1
		}
		return r
	}, begins))
}
