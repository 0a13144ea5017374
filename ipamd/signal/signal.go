// Package signal is a condition that goroutines await together with a context: what waits takes the channel, looks at
// the state, and sleeps on the channel until the state may have changed. It carries no value and loses no wake-up.
package signal

import "sync"

// Signal is ready to use as its zero value.
type Signal struct {
	mu sync.Mutex
	c  chan struct{}
}

// C returns a channel that is closed by the next Fire. Take it before looking at the state.
func (s *Signal) C() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c == nil {
		s.c = make(chan struct{})
	}
	return s.c
}

// Fire wakes everyone who holds a channel from C.
func (s *Signal) Fire() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.c != nil {
		close(s.c)
		s.c = nil
	}
}
