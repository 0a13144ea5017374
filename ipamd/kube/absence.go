package kube

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/branchline-cni/branchline/ipamd/signal"
)

// absence knows of one resource whether this API server has it at all, from what it answers.
type absence struct {
	most    time.Duration // the longest pause between two questions
	changed func()

	mu      sync.Mutex
	none    bool
	missing int // how many answers in a row said so

	answered time.Time     // when the last answer said whether
	believe  time.Duration // for how long that is believed although something contradicts it
	doubted  bool          // it is asked for because something did
	early    signal.Signal
}

// Bounds of how long an answer is believed that something contradicts: longer each time that it was confirmed.
const (
	believedFirst = 5 * time.Second
	believedMost  = 10 * time.Minute
)

func (a *absence) is() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.none
}

// doubt has it asked for at once, unless it was just now: something says that the resource is there. Until the answer nothing
// is known. Only where it was known to be absent doubt does something, and says so.
func (a *absence) doubt() bool {
	a.mu.Lock()
	doubted := a.none && time.Since(a.answered) > max(a.believe, believedFirst)
	if doubted {
		a.none, a.missing, a.doubted = false, 1, true
	}
	a.mu.Unlock()
	if doubted {
		a.early.Fire()
	}
	return doubted
}

// watch asks ever more rarely while the resource is not there: it may come, and thousands of nodes ask.
func (a *absence) watch(lw *cache.ListWatch) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			if err := a.pause(ctx); err != nil {
				return nil, err
			}
			l, err := lw.ListWithContextFunc(ctx, o)
			a.saw(err)
			return l, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			if err := a.pause(ctx); err != nil {
				return nil, err
			}
			w, err := lw.WatchFuncWithContext(ctx, o)
			a.saw(err)
			return w, err
		},
	}
}

func (a *absence) pause(ctx context.Context) error {
	early := a.early.C()
	a.mu.Lock()
	missing, none := a.missing, a.none
	a.mu.Unlock()
	if !none {
		return nil
	}
	d := min(time.Second<<min(missing, 20), a.most)
	t := time.NewTimer(d*3/4 + rand.N(d/2))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-early:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// saw learns from an answer.
func (a *absence) saw(err error) {
	missing := unknownResource(err)
	if err != nil && !missing {
		return
	}
	a.mu.Lock()
	changed := a.none != missing
	a.answered = time.Now()
	switch {
	case !missing:
		a.believe = 0
	case a.doubted:
		a.believe = min(2*max(a.believe, believedFirst), believedMost)
	}
	a.doubted = false
	if a.none = missing; missing {
		a.missing++
	} else {
		a.missing = 0
	}
	a.mu.Unlock()
	if changed {
		a.changed()
	}
}

// unknownResource: the API server has no such resource. A list of one that it has is never "not found".
func unknownResource(err error) bool { return apierrors.IsNotFound(err) || meta.IsNoMatchError(err) }
