package podeni

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/branchline-cni/branchline/api/reconnect"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/policy"
)

// Pauses between two questions after the same branch ENI, for one pod. Events don't shorten them: a node has many, and
// they tell nothing of what EC2 knows.
const (
	askAgainFirst = 2 * time.Second
	askAgainMost  = 30 * time.Second
)

// comparison compares one pod's branch ENI with the policies where no ledger tells its groups, and remembers what came out. It
// also remembers the labels of the pod's ServiceAccount where the ledger does tell them.
type comparison struct {
	a      *Assignments
	pod    kube.Pod
	labels map[string]string // nil: not read

	eniID    string // that the rest is about
	err      error
	next     time.Time // when it may be asked for again
	pause    time.Duration
	hopeless bool // to ask again is of no use
}

// check returns nil where the ENI has all groups, and otherwise what the last question brought.
func (c *comparison) check(ctx context.Context, eniID string) error {
	if eniID != c.eniID {
		*c = comparison{a: c.a, pod: c.pod, labels: c.labels, eniID: eniID, pause: askAgainFirst}
	}
	if c.err != nil && time.Now().Before(c.next) {
		return c.err
	}
	err := c.a.Guard.compare(ctx, c.pod, eniID, c.a.Groups)
	if err != nil && ctx.Err() != nil && c.err != nil {
		return c.err // it says more than that time was over meanwhile
	}
	c.next = time.Now().Add(c.pause*3/4 + rand.N(c.pause/2))
	c.pause = min(2*c.pause, askAgainMost)
	c.err, c.hopeless = err, errors.Is(err, errHopeless)
	return err
}

// account tells the labels of the pod's ServiceAccount. They are read once: events tell nothing of them.
func (c *comparison) account(ctx context.Context) (map[string]string, error) {
	if c.labels != nil || c.err != nil && time.Now().Before(c.next) {
		return c.labels, c.err
	}
	labels, err := c.a.Guard.account(ctx, c.pod.Object)
	c.labels, c.err, c.next = labels, said(err), time.Now().Add(tryAgain)
	c.hopeless = err != nil && !reconnect.Unreachable(err) && !errors.Is(err, context.DeadlineExceeded)
	return c.labels, c.err
}

// again is ready when the question that brought err may be asked again; never, for others.
func (c *comparison) again(err error) <-chan time.Time {
	if c.err == nil || !errors.Is(err, c.err) {
		return nil
	}
	return time.After(time.Until(c.next))
}

// errHopeless: the API server has said no.
var errHopeless = errors.New("it is of no use to ask again")

// compare is Branch where no ledger tells the branch ENI's groups: EC2 is asked for them, once a policy selects the pod.
// Where the node's role may not ask, the control plane is trusted, as the hosted one is there with every agent.
func (g *Guard) compare(ctx context.Context, pod kube.Pod, eniID string, all *BranchGroups) error {
	if pod.WiredBefore || pod.Object == nil {
		return nil
	}
	c := g.about(pod, 0)
	c.Groups = []string{} // does a policy give it any?
	lacks := func() (why string, err error) {
		a, _, err := g.decide(ctx, c, false)
		switch {
		case err != nil && !reconnect.Unreachable(err) && !errors.Is(err, context.DeadlineExceeded):
			return "", fmt.Errorf("%w: whether a policy gives it security groups of its own is not known: %w (%w)", ErrUnavailable, said(err), errHopeless)
		case err != nil:
			return "", fmt.Errorf("%w: whether a policy gives it security groups of its own is not known: %w", ErrUnavailable, said(err))
		case a.Verdict == policy.Wire:
			return "", nil
		}
		return a.Explain(pod.Object), nil
	}
	why, err := lacks()
	now := all.Now()
	for _, since := range []time.Time{now.Add(-rememberGroups), now} {
		if err != nil || why == "" {
			return err
		}
		c.Groups, err = all.Of(ctx, eniID, since)
		if errors.Is(err, errGroupsDenied) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		why, err = lacks()
	}
	if err == nil && why != "" {
		err = fmt.Errorf("%w: %s", ErrLate, why)
	}
	return err
}
