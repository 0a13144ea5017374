package trunk

import (
	"context"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/controller/cloud"
)

// asked holds what EC2 last said of instances whose Nodes are gone or silent. Where a zone fails there are thousands, so
// those that are due are asked about together, at the first one's turn, and each less and less often.
type asked struct {
	states func(context.Context, []string) (map[string]cloud.State, error)
	now    func() time.Time
	// every is the first period; it doubles up to slowest times that.
	every time.Duration

	mu        sync.Mutex
	instances map[string]*question
}

const (
	slowest = 16
	// gather is the part of a period for which a new question waits for others.
	gather = 6
)

type question struct {
	next   time.Time
	period time.Duration
	absent bool
	known  bool
	state  cloud.State
}

// about returns EC2's last word on the instance, if there is one, and when to ask here again. absent says that it has no
// Node; when that changes, earlier answers no longer count.
func (a *asked) about(ctx context.Context, id string, absent bool) (state cloud.State, known bool, again time.Duration, err error) {
	due := a.due(id, absent)
	if len(due) > 0 {
		states, err := a.states(ctx, due)
		if err != nil {
			return 0, false, 0, err
		}
		a.mu.Lock()
		for _, id := range due {
			if q := a.instances[id]; q != nil {
				q.known, q.state = true, states[id]
			}
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.instances[id]
	if q == nil {
		return 0, false, a.every, nil
	}
	return q.state, q.known, max(q.next.Sub(a.now()), 10*time.Millisecond), nil
}

// due returns whom to ask about now: nobody until this instance's turn, then with it all whose turn is near.
func (a *asked) due(id string, absent bool) []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	q := a.instances[id]
	if q == nil || q.absent != absent {
		if a.instances == nil {
			a.instances = map[string]*question{}
		}
		a.instances[id] = &question{next: now.Add(a.every / gather), period: a.every, absent: absent}
		return nil
	}
	if now.Before(q.next) {
		return nil
	}
	due := []string{id}
	for other, o := range a.instances {
		if len(due) == cloud.MaxStates {
			break
		}
		if other != id && !now.Before(o.next.Add(-o.period/2)) {
			due = append(due, other)
		}
	}
	for _, id := range due {
		o := a.instances[id]
		o.next, o.period = now.Add(o.period), min(2*o.period, slowest*a.every)
	}
	return due
}

// forget ends the questions about an instance.
func (a *asked) forget(id string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.instances, id)
}
