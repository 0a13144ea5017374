package trunk

import (
	"math/rand/v2"
	"sync"
	"time"
)

// pauses keeps nodes that can't have a trunk now from asking EC2 at each of their heartbeats: each is asked for again after a
// pause that grows, or as soon as what the answer depended on has changed. It is safe for concurrent use.
type pauses struct {
	now func() time.Time
	// first is the shortest pause; it doubles up to most.
	first, most time.Duration

	mu sync.Mutex
	m  map[string]*pause
}

type pause struct {
	on    any
	until time.Time
	d     time.Duration
}

// left says how long the node's pause still lasts; 0 where there is none, or it was for another state of things than on, which
// may be anything comparable.
func (p *pauses) left(node string, on any) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	q := p.m[node]
	if q == nil || q.on != on {
		return 0
	}
	return max(0, q.until.Sub(p.now()))
}

// more begins the node's next pause and says how long it lasts, spread so that nodes don't come all at once.
func (p *pauses) more(node string, on any) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[string]*pause{}
	}
	q := p.m[node]
	if q == nil || q.on != on {
		q = &pause{on: on}
		p.m[node] = q
	}
	q.d = min(max(2*q.d, p.first), p.most)
	d := q.d*3/4 + rand.N(q.d/2+1)
	q.until = p.now().Add(d)
	return d
}

func (p *pauses) forget(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.m, node)
}
