package podeni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/signal"
)

// cluster is an API server that can be away, and a watch that lags behind it for ever unless told otherwise.
type cluster struct {
	back    time.Time
	live    map[string]kube.Pod
	watched sync.Map // as live
	changed signal.Signal
	asked   int
}

func (c *cluster) Pod(namespace, name string) (kube.Pod, bool) {
	p, ok := c.watched.Load(namespace + "/" + name)
	if !ok {
		return kube.Pod{}, false
	}
	return p.(kube.Pod), true
}

func (c *cluster) PodsSynced() bool { return true }

func (c *cluster) LivePod(_ context.Context, namespace, name string) (kube.Pod, error) {
	c.asked++
	if time.Now().Before(c.back) {
		return kube.Pod{}, fmt.Errorf("get pod: %w", &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED})
	}
	p, ok := c.live[namespace+"/"+name]
	if !ok {
		return p, kube.ErrNoPod
	}
	return p, nil
}

func TestAnAPIServerThatIsAwayIsWaitedFor(t *testing.T) {
	pod := kube.Pod{Namespace: "default", Name: "p", UID: "1"}
	for name, tt := range map[string]struct {
		uid     string
		back    time.Duration
		watched time.Duration // when the watch has it; 0: never
		took    time.Duration // at most
		err     error
	}{
		"it comes back":                    {uid: "1", back: 20 * time.Second, took: 25 * time.Second},
		"it comes back, no UID":            {back: 20 * time.Second, took: 25 * time.Second},
		"the watch has the pod first":      {uid: "1", back: time.Hour, watched: 7 * time.Second, took: 7 * time.Second},
		"it stays away":                    {uid: "1", back: time.Hour, took: 85 * time.Second, err: ErrUnavailable},
		"it comes back and knows no such":  {uid: "2", back: 5 * time.Second, took: 10 * time.Second, err: ErrUnknown},
		"it is there and knows no such":    {uid: "2", took: 2 * time.Second, err: ErrUnknown},
		"it is there, and the watch lags":  {uid: "1", took: 2 * time.Second},
		"it is there, and nobody gave UID": {},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &cluster{back: time.Now().Add(tt.back), live: map[string]kube.Pod{"default/p": pod}}
				if tt.watched > 0 {
					time.AfterFunc(tt.watched, func() {
						c.watched.Store("default/p", pod)
						c.changed.Fire()
					})
				}
				ctx, cancel := context.WithTimeout(t.Context(), 85*time.Second)
				defer cancel()
				began := time.Now()
				got, err := NewLookup(c, c.changed.C).Find(ctx, "default", "p", tt.uid)
				if took := time.Since(began); took > tt.took {
					t.Errorf("took %s, want at most %s", took, tt.took)
				}
				if !errors.Is(err, tt.err) || err == nil && got != pod {
					t.Errorf("found %v, %v; want %v", got, err, tt.err)
				}
				if c.asked > 40 {
					t.Errorf("asked %d times", c.asked)
				}
			})
		})
	}
}
