package podeni

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/branchline-cni/branchline/api/reconnect"
	"github.com/branchline-cni/branchline/ipamd/kube"
)

// Pods is where pods are looked up.
type Pods interface {
	// Pod returns a pod of this node from memory, LivePod asks the API server (kube.ErrNoPod where there is none).
	Pod(namespace, name string) (kube.Pod, bool)
	LivePod(ctx context.Context, namespace, name string) (kube.Pod, error)
	PodsSynced() bool
}

// Lookup finds the pod that a sandbox belongs to.
type Lookup struct {
	Pods    Pods
	Changed func() <-chan struct{}
	// Grace is how long the watch is waited for before the API server is asked.
	Grace time.Duration
	// live bounds the questions to the API server that are under way at once.
	live chan struct{}
}

// maxLive is how many pods are asked for at once.
const maxLive = 8

// NewLookup makes a Lookup.
func NewLookup(p Pods, changed func() <-chan struct{}) *Lookup {
	return &Lookup{Pods: p, Changed: changed, Grace: 2 * time.Second, live: make(chan struct{}, maxLive)}
}

// Find returns the pod of that name and UID: from memory, from the watch within Grace, or by one question to the API
// server. Without a UID the API server is always asked: a name alone may mean a predecessor. An API server that can't be
// reached is waited for until ctx ends: it may be restarting, and to fail would only bring the runtime's long pauses
// before the next try. ErrUnknown and ErrUnavailable are in the error's chain.
func (l *Lookup) Find(ctx context.Context, namespace, name, uid string) (kube.Pod, error) {
	for {
		changed := l.Changed()
		p, err := l.find(ctx, namespace, name, uid)
		if !reconnect.Unreachable(err) {
			return p, err
		}
		t := time.NewTimer(l.Grace)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			return p, err
		}
	}
}

func (l *Lookup) find(ctx context.Context, namespace, name, uid string) (kube.Pod, error) {
	if uid != "" {
		if p, ok := l.watched(ctx, namespace, name, uid); ok {
			return p, nil
		}
	}
	select {
	case l.live <- struct{}{}:
		defer func() { <-l.live }()
	case <-ctx.Done():
		return kube.Pod{}, fmt.Errorf("pod %s/%s: %w: too many pods are being asked for", namespace, name, ErrUnavailable)
	}
	p, err := l.Pods.LivePod(ctx, namespace, name)
	switch {
	case errors.Is(err, kube.ErrNoPod):
		return p, fmt.Errorf("%w: pod %s/%s is not in the API server", ErrUnknown, namespace, name)
	case err != nil:
		return p, fmt.Errorf("%w: pod %s/%s is not in this node's watch and could not be asked for: %w", ErrUnavailable, namespace, name, err)
	case uid != "" && !p.Is(uid):
		return p, fmt.Errorf("%w: pod %s/%s has UID %s in the API server, the sandbox is for %s", ErrUnknown, namespace, name, p.UID, uid)
	}
	return p, nil
}

func (l *Lookup) watched(ctx context.Context, namespace, name, uid string) (kube.Pod, bool) {
	grace, cancel := context.WithTimeout(ctx, l.Grace)
	defer cancel()
	for {
		changed := l.Changed()
		if p, ok := l.Pods.Pod(namespace, name); ok && p.Is(uid) {
			return p, true
		}
		select {
		case <-changed:
		case <-grace.Done():
			return kube.Pod{}, false
		}
	}
}
