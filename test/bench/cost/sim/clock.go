package sim

import (
	"container/heap"
	"iter"
	"time"
)

// Clock runs processes in virtual time, one at a time and always in the same order.
type Clock struct {
	now   time.Duration
	queue events
	seq   int
	stops []func()
}

type event struct {
	at  time.Duration
	seq int
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	last := (*e)[len(*e)-1]
	*e = (*e)[:len(*e)-1]
	return last
}

// Now is the time since the beginning.
func (c *Clock) Now() time.Duration { return c.now }

// At does something later.
func (c *Clock) At(at time.Duration, do func()) {
	c.seq++
	heap.Push(&c.queue, event{max(at, c.now), c.seq, do})
}

// Run goes on until then.
func (c *Clock) Run(until time.Duration) {
	for len(c.queue) > 0 && c.queue[0].at <= until {
		e := heap.Pop(&c.queue).(event)
		c.now = e.at
		e.do()
	}
	c.now = until
}

// Stop ends all processes.
func (c *Clock) Stop() {
	for _, stop := range c.stops {
		stop()
	}
}

// Process is what may wait.
type Process struct {
	c     *Clock
	yield func(struct{}) bool
	next  func() (struct{}, bool)
	turn  int // a wake-up of an earlier turn is late
}

type stopped struct{}

// Go begins a process, now.
func (c *Clock) Go(f func(*Process)) {
	p := &Process{c: c}
	next, stop := iter.Pull(func(yield func(struct{}) bool) {
		p.yield = yield
		defer func() {
			if r := recover(); r != nil {
				if _, ok := r.(stopped); !ok {
					panic(r)
				}
			}
		}()
		f(p)
	})
	p.next = next
	c.stops = append(c.stops, stop)
	c.At(c.now, func() { p.next() })
}

func (p *Process) park() {
	p.turn++
	if !p.yield(struct{}{}) {
		panic(stopped{})
	}
}

func (p *Process) wake(turn int) func() {
	return func() {
		if p.turn == turn {
			p.next()
		}
	}
}

// Sleep waits.
func (p *Process) Sleep(d time.Duration) {
	p.c.At(p.c.now+d, p.wake(p.turn+1))
	p.park()
}

// Signal wakes those who wait for it.
type Signal struct{ waiting []func() }

// Fire wakes all who wait at this moment.
func (s *Signal) Fire(c *Clock) {
	for _, w := range s.waiting {
		c.At(c.now, w)
	}
	s.waiting = nil
}

// Wait waits for the signal, for at most d; 0: for ever.
func (p *Process) Wait(s *Signal, d time.Duration) {
	s.waiting = append(s.waiting, p.wake(p.turn+1))
	if d > 0 {
		p.c.At(p.c.now+d, p.wake(p.turn+1))
	}
	p.park()
}
