package reconnect_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/branchline-cni/branchline/api/reconnect"
)

// server is an API server of pods that can go away.
type server struct {
	up    atomic.Bool
	asked atomic.Int32
}

func (s *server) do() error {
	s.asked.Add(1)
	if s.up.Load() {
		return nil
	}
	return fmt.Errorf("ask: %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
}

func (s *server) listWatch() *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			return &corev1.PodList{ListMeta: metav1.ListMeta{ResourceVersion: "1"}}, s.do()
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) {
			return watch.NewFake(), s.do()
		},
	}
}

func TestWatchesAreTakenUpSoonAfterTheAPIServerIsBackHoweverLongItWasAway(t *testing.T) {
	for _, away := range []time.Duration{time.Second, 10 * time.Second, time.Minute, time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			s := &server{}
			g := reconnect.New(slog.New(slog.DiscardHandler))
			var watches sync.WaitGroup
			for range 4 { // as reflectors do: a list, then a watch
				lw := g.Wrap(s.listWatch())
				watches.Go(func() {
					if _, err := lw.ListWithContextFunc(t.Context(), metav1.ListOptions{}); err != nil {
						t.Error(err)
					}
					if _, err := lw.WatchFuncWithContext(t.Context(), metav1.ListOptions{}); err != nil {
						t.Error(err)
					}
				})
			}
			time.Sleep(away)
			// Each asks to begin with, then one of them for all.
			if asked, most := s.asked.Load(), 10+int32(away/(3*time.Second)); asked > most {
				t.Errorf("asked %d times in %s, want at most %d", asked, away, most)
			}
			s.up.Store(true)
			back := time.Now()
			watches.Wait()
			if took := time.Since(back); took > 5*time.Second {
				t.Errorf("away for %s, taken up %s after it was back", away, took)
			}
		})
	}
}

func TestTheEndOfItsContextEndsAWaitAndAnotherAsksOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		g := reconnect.New(slog.New(slog.DiscardHandler))
		lw := g.Wrap(s.listWatch())
		results := make(chan error, 2)
		first, cancel := context.WithCancel(t.Context())
		for _, ctx := range []context.Context{first, t.Context()} {
			go func() {
				_, err := lw.ListWithContextFunc(ctx, metav1.ListOptions{})
				results <- err
			}()
			synctest.Wait() // the first has the turn
		}
		time.Sleep(time.Minute)
		cancel()
		if err := <-results; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("the one that ended: %v", err)
		}
		s.up.Store(true)
		if err := <-results; err != nil {
			t.Errorf("the other: %v", err)
		}
	})
}

func TestWhatTheAPIServerAnswersIsPassedOn(t *testing.T) {
	answer := errors.New("too many requests")
	asked := 0
	lw := reconnect.New(slog.New(slog.DiscardHandler)).Wrap(&cache.ListWatch{
		ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			asked++
			return nil, answer
		},
		WatchFuncWithContext: func(context.Context, metav1.ListOptions) (watch.Interface, error) { return nil, answer },
	})
	if _, err := lw.ListWithContextFunc(t.Context(), metav1.ListOptions{}); !errors.Is(err, answer) || asked != 1 {
		t.Errorf("%v after %d questions", err, asked)
	}
	if _, err := lw.WatchFuncWithContext(t.Context(), metav1.ListOptions{}); !errors.Is(err, answer) {
		t.Error(err)
	}
}

func TestUnreachable(t *testing.T) {
	get := func(url string) error {
		r, err := http.Get(url)
		if err == nil {
			r.Body.Close()
		}
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := "http://" + l.Addr().String()
	l.Close()
	hangsUp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err == nil {
			c.Close()
		}
	}))
	defer hangsUp.Close()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for what, tt := range map[string]struct {
		err  error
		want bool
	}{
		"nobody listens": {get(nobody), true},
		"hangs up":       {get(hangsUp.URL), true},
		"cut off":        {fmt.Errorf("read: %w", io.ErrUnexpectedEOF), true},
		"nothing":        {nil, false},
		"an answer":      {errors.New("forbidden"), false},
		"given up":       {ctx.Err(), false},
	} {
		if got := reconnect.Unreachable(tt.err); got != tt.want {
			t.Errorf("%s (%v): %t", what, tt.err, got)
		}
	}
}

// TestOneAnswerIsNoReasonToAskWithoutPauses: a request that was under way is answered, and others find nobody all the same: an API server
// that flaps, or one of several that is dead.
func TestOneAnswerIsNoReasonToAskWithoutPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{}
		g := reconnect.New(slog.New(slog.DiscardHandler))
		ctx, cancel := context.WithCancel(t.Context())
		var watches sync.WaitGroup
		watches.Go(func() {
			lw := g.Wrap(&cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
				if s.asked.Load() > 1000 {
					cancel() // in no time
				}
				return nil, s.do()
			}})
			if _, err := lw.ListWithContextFunc(ctx, metav1.ListOptions{}); err == nil {
				t.Error("nobody answers, and it has an answer")
			}
		})
		slow := g.Wrap(&cache.ListWatch{ListWithContextFunc: func(context.Context, metav1.ListOptions) (runtime.Object, error) {
			time.Sleep(10 * time.Second)
			return &corev1.PodList{}, nil
		}})
		if _, err := slow.ListWithContextFunc(t.Context(), metav1.ListOptions{}); err != nil {
			t.Error(err)
		}
		time.Sleep(time.Minute)
		if n := s.asked.Load(); n > 40 {
			t.Errorf("asked %d times within some 70 s", n)
		}
		cancel()
		watches.Wait()
	})
}
