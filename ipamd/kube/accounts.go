package kube

import (
	"context"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// accountTimeout bounds one question: it is asked for all who wait, not for one of them.
const accountTimeout = 10 * time.Second

// accounts are the questions for ServiceAccounts that are under way. A burst of pods of one ServiceAccount is two of them:
// nobody is given an answer to a question that was asked before his own.
type accounts struct {
	mu      sync.Mutex
	running map[types.NamespacedName]*reading
	next    map[types.NamespacedName]*reading
}

type reading struct {
	done   chan struct{}
	labels map[string]string
	err    error
}

// of waits for the answer to a question that is asked from now on.
func (a *accounts) of(ctx context.Context, key types.NamespacedName, ask func() (map[string]string, error)) (map[string]string, error) {
	a.mu.Lock()
	r := a.next[key]
	if r == nil {
		r = &reading{done: make(chan struct{})}
		if a.running == nil {
			a.running, a.next = map[types.NamespacedName]*reading{}, map[types.NamespacedName]*reading{}
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
		return r.labels, r.err
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

func (a *accounts) run(key types.NamespacedName, r *reading, ask func() (map[string]string, error)) {
	for r != nil {
		r.labels, r.err = ask()
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

// AccountLabels asks the API server for the labels of a ServiceAccount. One that does not exist has none.
func (c *Client) AccountLabels(ctx context.Context, namespace, name string) (map[string]string, error) {
	if name == "" {
		name = "default"
	}
	key := types.NamespacedName{Namespace: namespace, Name: name}
	return c.accounts.of(ctx, key, func() (map[string]string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), accountTimeout)
		defer cancel()
		account := &metav1.PartialObjectMetadata{}
		account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
		err := c.opt.API.Get(ctx, key, account)
		if err != nil && !apierrors.IsNotFound(err) {
			return nil, fmt.Errorf("read the labels of ServiceAccount %s: %w", key, err)
		}
		if account.Labels == nil {
			return map[string]string{}, nil
		}
		return account.Labels, nil
	})
}
