package podeni

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/branchline-cni/branchline/api/reconnect"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/policy"
)

// Policies is where the policies that may select a pod are read.
type Policies interface {
	// Policies returns those of a namespace from memory, and whether that is up to date (kube.ErrNotSynced: not known yet).
	Policies(namespace string) (all []v1beta1.SecurityGroupPolicy, current bool, err error)
	// LivePolicies asks the API server for them, AccountLabels for the labels of one ServiceAccount.
	LivePolicies(ctx context.Context, namespace string) ([]v1beta1.SecurityGroupPolicy, error)
	AccountLabels(ctx context.Context, namespace, name string) (map[string]string, error)
	// Stamps says whether the control plane stamps its decisions on pods.
	Stamps() bool
}

const (
	// tryAgain is the pause before an API server that did not answer is asked again.
	tryAgain = 2 * time.Second
	// askMost is how long one question to the API server may take.
	askMost = 10 * time.Second
	// rememberRefused is how long a refused pod is remembered after it was asked for last: the kubelet asks at least every
	// five minutes.
	rememberRefused = time.Hour
)

// Guard keeps pods from being wired with fewer security groups than the policies give them. What is decided, and why, is
// policy.Decide's; the Guard brings what that needs to know.
//
// It goes by memory. The API server is asked only where memory may be out of date, for the labels of ServiceAccounts by
// which a policy selects, and before a pod is refused: memory may lag behind. While it can't be asked, the pod waits.
type Guard struct {
	Source  Policies
	Changed func() <-chan struct{}
	Now     func() time.Time

	// live bounds the questions to the API server that are under way at once.
	live chan struct{}

	mu      sync.Mutex
	refused map[string]time.Time // when, by the pod's UID
}

// NewGuard makes a Guard.
func NewGuard(source Policies, changed func() <-chan struct{}, now func() time.Time) *Guard {
	return &Guard{Source: source, Changed: changed, Now: now, live: make(chan struct{}, maxLive), refused: map[string]time.Time{}}
}

// Regular returns nil where the pod may be wired as a regular one. ErrRefused: a policy gives it security groups of its
// own, the text says what to do. ErrUnavailable: that could not be found out until ctx ended.
func (g *Guard) Regular(ctx context.Context, pod kube.Pod) error {
	if pod.WiredBefore || pod.Object == nil {
		return nil
	}
	began := time.Now()
	for {
		changed := g.Changed()
		c := g.about(pod, time.Since(began))
		a, sure, err := g.decide(ctx, c, false)
		// Once is enough: the kubelet asks again and again, on many nodes at once where the webhook was away.
		if err == nil && a.Verdict == policy.Refuse && !sure && !c.RefusedBefore {
			a, _, err = g.decide(ctx, c, true)
		}
		pause := a.For
		switch {
		case err != nil && !reconnect.Unreachable(err) && !errors.Is(err, context.DeadlineExceeded):
			return fmt.Errorf("%w: pod %s/%s: whether a policy gives it security groups of its own is not known: %w", ErrUnavailable, pod.Namespace, pod.Name, said(err))
		case err != nil:
			pause = tryAgain
		case a.Verdict == policy.Wire:
			g.forget(pod.UID)
			return nil
		case a.Verdict == policy.Refuse:
			g.remember(pod.UID)
			return fmt.Errorf("%w: %s", ErrRefused, a.Explain(pod.Object))
		}
		t := time.NewTimer(pause)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			if err == nil {
				return fmt.Errorf("%w: %s", ErrRefused, a.Explain(pod.Object))
			}
			return fmt.Errorf("%w: pod %s/%s: whether a policy gives it security groups of its own is not known: %w", ErrUnavailable, pod.Namespace, pod.Name, said(err))
		}
	}
}

// said adds the remedy where the agent's role lacks something.
func said(err error) error {
	if apierrors.IsForbidden(err) {
		return fmt.Errorf("apply the ClusterRole aws-node of this version's manifest (config/aws-node): %w", err)
	}
	return err
}

// Branch returns nil where the groups of the pod's branch ENI are all that the policies give it, as far as memory knows;
// they were read from the API server when the ENI was made. account tells the labels of the pod's ServiceAccount, where they
// decide. ErrLate: some groups are missing, ErrUnavailable: nothing is known.
func (g *Guard) Branch(pod kube.Pod, groups []string, account func() (map[string]string, error)) error {
	if pod.WiredBefore || pod.Object == nil {
		return nil
	}
	c := g.about(pod, 0)
	var err error
	if c.Policies, _, err = g.Source.Policies(pod.Namespace); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c.Groups = groups
	a := policy.Decide(c)
	if a.Cause == policy.Unread {
		if c.Account, err = account(); err != nil {
			return fmt.Errorf("%w: whether a policy gives it security groups of its own is not known: %w", ErrUnavailable, err)
		}
		a = policy.Decide(c)
	}
	if a.Verdict == policy.Refuse {
		return fmt.Errorf("%w: %s", ErrLate, a.Explain(pod.Object))
	}
	return nil
}

func (g *Guard) about(pod kube.Pod, looked time.Duration) policy.Case {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, refused := g.refused[pod.UID]
	return policy.Case{Pod: pod.Object, Stamps: g.Source.Stamps(), RefusedBefore: refused, Looked: looked}
}

// decide brings the policies, and the ServiceAccount's labels where they matter. sure says that the policies are the API
// server's of this moment.
func (g *Guard) decide(ctx context.Context, c policy.Case, live bool) (a policy.Answer, sure bool, err error) {
	if !live {
		var current bool
		c.Policies, current, err = g.Source.Policies(c.Pod.Namespace)
		live = err != nil || !current
	}
	if live {
		err = g.ask(ctx, func(ctx context.Context) (err error) {
			c.Policies, err = g.Source.LivePolicies(ctx, c.Pod.Namespace)
			return err
		})
		if err != nil {
			return a, false, err
		}
	}
	if a = policy.Decide(c); a.Cause != policy.Unread {
		return a, live, nil
	}
	if c.Account, err = g.account(ctx, c.Pod); err != nil {
		return a, false, err
	}
	return policy.Decide(c), live, nil
}

// account asks for the labels of the pod's ServiceAccount.
func (g *Guard) account(ctx context.Context, pod *corev1.Pod) (labels map[string]string, err error) {
	err = g.ask(ctx, func(ctx context.Context) (err error) {
		labels, err = g.Source.AccountLabels(ctx, pod.Namespace, pod.Spec.ServiceAccountName)
		return err
	})
	if err == nil && labels == nil {
		labels = map[string]string{} // read, and there are none
	}
	return labels, err
}

func (g *Guard) ask(ctx context.Context, question func(context.Context) error) error {
	select {
	case g.live <- struct{}{}:
		defer func() { <-g.live }()
	case <-ctx.Done():
		return fmt.Errorf("too many policies and ServiceAccounts are being asked for: %w", context.Cause(ctx))
	}
	ctx, cancel := context.WithTimeout(ctx, askMost) // of the question alone
	defer cancel()
	return question(ctx)
}

func (g *Guard) remember(uid string) {
	now := g.Now()
	g.mu.Lock()
	defer g.mu.Unlock()
	for u, at := range g.refused {
		if now.Sub(at) > rememberRefused {
			delete(g.refused, u)
		}
	}
	g.refused[uid] = now
}

func (g *Guard) forget(uid string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.refused, uid)
}
