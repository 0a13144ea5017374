// Package reconnect brings the watches of a process back soon after the API server is back.
//
// An informer's own back-off doubles from 0.8 s to a minute with each failure of the last two minutes. That is made for
// a server that answers and is overloaded. While nothing listens at all (a control plane that restarts, an address that
// moves) it only makes every pod that waits for a watch wait for tens of seconds more. A Gate holds back failures of
// the connection, so that the back-off does not grow by them: one caller at a time asks again, after pauses that stay
// short, and the first answer wakes the others. Whatever the API server itself answers is passed on unchanged.
package reconnect

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
)

// The pauses between two attempts to connect. Five thousand nodes that have lost the API server make some 1500
// attempts a second, each from one caller.
const (
	shortest = 250 * time.Millisecond
	longest  = 4 * time.Second
)

// Gate is shared by all watches of one process.
type Gate struct {
	log  *slog.Logger
	turn chan struct{} // holds one: the caller that asks again for all

	mu    sync.Mutex
	back  chan struct{} // closed by the next answer
	since time.Time     // when the API server was lost; zero while it answers
}

// New makes a Gate. The log is told when the API server is lost and found.
func New(log *slog.Logger) *Gate {
	return &Gate{log: log, turn: make(chan struct{}, 1)}
}

// Wrap returns a ListerWatcher that waits while there is nothing to connect to, and does not fail.
func (g *Gate) Wrap(lw cache.ListerWatcher) *cache.ListWatch {
	inner := cache.ToListerWatcherWithContext(lw)
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			return through(ctx, g, func() (runtime.Object, error) { return inner.ListWithContext(ctx, o) })
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			return through(ctx, g, func() (watch.Interface, error) { return inner.WatchWithContext(ctx, o) })
		},
	}
}

// NewInformer is cache.NewSharedIndexInformer, with its ListerWatcher wrapped.
func (g *Gate) NewInformer(lw cache.ListerWatcher, example runtime.Object, resync time.Duration, indexers cache.Indexers) cache.SharedIndexInformer {
	return cache.NewSharedIndexInformer(g.Wrap(lw), example, resync, indexers)
}

// Unreachable says whether a request failed for want of a connection: the API server did not answer at all.
func Unreachable(err error) bool {
	var op *net.OpError // dial, read, write: refused, reset, timed out, no route
	return errors.As(err, &op) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
}

// through asks until the API server answers, whatever the answer is, or ctx ends.
func through[T any](ctx context.Context, g *Gate, ask func() (T, error)) (T, error) {
	for {
		v, err := ask()
		if !Unreachable(err) {
			g.answered()
			return v, err
		}
		back := g.lost(err)
		select {
		case <-back:
		case <-ctx.Done():
			return v, err
		case g.turn <- struct{}{}:
			v, err = again(ctx, back, ask)
			<-g.turn
			if !Unreachable(err) {
				g.answered()
			}
			return v, err
		}
	}
}

// again asks after pauses, until there is an answer or ctx ends.
func again[T any](ctx context.Context, back <-chan struct{}, ask func() (T, error)) (T, error) {
	for pause := shortest; ; pause = min(2*pause, longest) {
		t := time.NewTimer(pause*3/4 + rand.N(pause/2))
		select {
		case <-t.C:
		case <-back: // another one, which was still under way, got through
			back = nil // it says so once: a pause comes before each further try
		case <-ctx.Done():
		}
		t.Stop()
		v, err := ask()
		if !Unreachable(err) || ctx.Err() != nil {
			return v, err
		}
	}
}

// lost notes that there is no connection. The channel is closed by the next answer.
func (g *Gate) lost(err error) <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.since.IsZero() {
		g.since, g.back = time.Now(), make(chan struct{})
		g.log.Warn("the API server can't be reached: watches wait for it", "error", err)
	}
	return g.back
}

// answered wakes everyone who waits.
func (g *Gate) answered() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.since.IsZero() {
		return
	}
	g.log.Info("the API server answers again: watches are taken up", "away", time.Since(g.since).Round(time.Millisecond).String())
	g.since = time.Time{}
	close(g.back)
}
