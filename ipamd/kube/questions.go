package kube

import (
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// questionTimeout bounds one question: it is asked for all who wait, not for one of them.
const questionTimeout = 10 * time.Second

// questions are those for one kind of thing that are under way, by what is asked for. A burst of pods of one ServiceAccount is two
// of them: nobody is given an answer to a question that was asked before his own.
type questions[T any] struct {
	mu      sync.Mutex
	running map[types.NamespacedName]*reading[T]
	next    map[types.NamespacedName]*reading[T]
}

type reading[T any] struct {
	done   chan struct{}
	answer T
	err    error
}

// of waits for the answer to a question that is asked from now on.
func (a *questions[T]) of(ctx context.Context, key types.NamespacedName, ask func() (T, error)) (answer T, err error) {
	a.mu.Lock()
	r := a.next[key]
	if r == nil {
		r = &reading[T]{done: make(chan struct{})}
		if a.running == nil {
			a.running, a.next = map[types.NamespacedName]*reading[T]{}, map[types.NamespacedName]*reading[T]{}
		}
		if a.running[key] == nil {
			a.running[key] = r
			go a.run(key, r, ask)
		} else {
			a.next[key] = r
		}
	}
	a.mu.Unlock()
	select {
	case <-r.done:
		return r.answer, r.err
	case <-ctx.Done():
		return answer, context.Cause(ctx)
	}
}

func (a *questions[T]) run(key types.NamespacedName, r *reading[T], ask func() (T, error)) {
	for r != nil {
		r.answer, r.err = ask()
		close(r.done)
		a.mu.Lock()
		r = a.next[key]
		delete(a.next, key)
		if a.running[key] = r; r == nil {
			delete(a.running, key)
		}
		a.mu.Unlock()
	}
}
