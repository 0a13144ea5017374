package trunk

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/controller/cloud"
)

// Asked holds what EC2 last said of instances that somebody has a question about: those whose Nodes are gone or silent,
// and those with slots that nobody confirms. Where a zone fails there are thousands, so those that are due are asked about
// together, at the first one's turn, and each less and less often. It is safe for concurrent use.
type Asked struct {
	states func(context.Context, []string) (map[string]cloud.State, error)
	now    func() time.Time
	// every is the first period; it doubles up to slowest times that.
	every time.Duration

	mu        sync.Mutex
	questions map[asker]*question
}

// NewAsked makes one that asks c. now defaults to time.Now, every to 30 s.
func NewAsked(c *cloud.Client, now func() time.Time, every time.Duration) *Asked {
	if now == nil {
		now = time.Now
	}
	if every == 0 {
		every = recheck
	}
	return &Asked{states: c.States, now: now, every: every}
}

const (
	slowest = 16
	// gather is the part of a period for which a new question waits for others.
	gather = 6
)

// Subject is what is asked about an instance: each has its own turns.
type Subject int

// Subjects.
const (
	OfNode Subject = iota
	OfSlots
)

type asker struct {
	id      string
	subject Subject
}

type question struct {
	next   time.Time
	period time.Duration
	since  any
	known  bool
	state  cloud.State
}

// About returns EC2's last word on the instance, if there is one, and when to ask here again. since is anything comparable
// that tells the state of things that the answer must be later than: when it changes, earlier answers no longer count.
func (a *Asked) About(ctx context.Context, id string, subject Subject, since any) (state cloud.State, known bool, again time.Duration, err error) {
	me := asker{id, subject}
	if due := a.due(me, since); len(due) > 0 {
		ids := slices.Collect(maps.Keys(due))
		slices.Sort(ids)
		states, err := a.states(ctx, ids)
		if err != nil {
			return 0, false, 0, err
		}
		a.mu.Lock()
		for id, questions := range due {
			for _, q := range questions { // one that was replaced meanwhile is in nobody's hands any more
				q.known, q.state = true, states[id]
			}
		}
		a.mu.Unlock()
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	q := a.questions[me]
	if q == nil {
		return 0, false, a.every, nil
	}
	return q.state, q.known, max(q.next.Sub(a.now()), 10*time.Millisecond), nil
}

// due returns whom to ask about now: nobody until this question's turn, then with it all whose turn is near.
func (a *Asked) due(me asker, since any) map[string][]*question {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	mine := a.questions[me]
	if mine == nil || mine.since != since {
		if a.questions == nil {
			a.questions = map[asker]*question{}
		}
		a.questions[me] = &question{next: now.Add(a.every / gather), period: a.every, since: since}
		return nil
	}
	if now.Before(mine.next) {
		return nil
	}
	due := map[string][]*question{me.id: {mine}}
	for other, q := range a.questions {
		if _, asked := due[other.id]; !asked && len(due) == cloud.MaxStates {
			continue
		}
		if other != me && !now.Before(q.next.Add(-q.period/2)) {
			due[other.id] = append(due[other.id], q)
		}
	}
	for _, questions := range due {
		for _, q := range questions {
			q.next, q.period = now.Add(q.period), min(2*q.period, slowest*a.every)
		}
	}
	return due
}

// Forget ends a question about an instance.
func (a *Asked) Forget(id string, subject Subject) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.questions, asker{id, subject})
}
