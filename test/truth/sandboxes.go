package truth

import (
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Grant is what the agent told a sandbox.
type Grant struct {
	Address      netip.Addr
	ENI          string
	Card, Device int
}

// Sandboxes holds what was answered. It is safe for use by several goroutines.
type Sandboxes struct {
	// Believed returns what the VPC has at this moment.
	Believed func() map[string]ENI
	Now      func() time.Time
	CoolDown time.Duration

	mu      sync.Mutex
	held    map[string]Grant
	cut     map[string]bool            // somebody else took their address from them
	ended   map[netip.Addr]time.Time   // when it was last torn down
	excused map[netip.Prefix]time.Time // until when nobody can know that it is gone
}

// Told notes an answer, and returns what is wrong with it.
func (s *Sandboxes) Told(sandbox string, g Grant) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.Now()
	if before, again := s.held[sandbox]; again {
		if before != g {
			return fmt.Errorf("sandbox %s was told %v and then %v", sandbox, before, g)
		}
		return nil
	}
	for other, o := range s.held {
		if o.Address == g.Address {
			return fmt.Errorf("%s was given to sandbox %s, and sandbox %s has it", g.Address, sandbox, other)
		}
	}
	if at, ok := s.ended[g.Address]; ok && now.Sub(at) < s.CoolDown {
		return fmt.Errorf("%s was given to sandbox %s %s after its last pod's end", g.Address, sandbox, now.Sub(at))
	}
	if err := s.right(g); err != nil {
		if now.After(s.excusedUntil(g.Address)) {
			return fmt.Errorf("sandbox %s was told %v: %w", sandbox, g, err)
		}
		s.cutOff(sandbox)
	}
	if s.held == nil {
		s.held = map[string]Grant{}
	}
	s.held[sandbox] = g
	return nil
}

// right compares with the VPC.
func (s *Sandboxes) right(g Grant) error {
	switch e, ok := s.Believed()[g.ENI]; {
	case !ok:
		return fmt.Errorf("the VPC has no %s", g.ENI)
	case e.Card != g.Card || e.Device != g.Device:
		return fmt.Errorf("the VPC has %s at device %d of card %d", g.ENI, e.Device, e.Card)
	case !e.Has(g.Address):
		return fmt.Errorf("the VPC has %v and %v on %s", e.Addresses, e.Prefixes, g.ENI)
	case len(e.Addresses) > 0 && e.Addresses[0] == g.Address:
		return fmt.Errorf("it is the primary address of %s", g.ENI)
	}
	return nil
}

// Check returns a sandbox that holds what the VPC no longer has.
func (s *Sandboxes) Check() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for sandbox, g := range s.held {
		if s.cut[sandbox] {
			continue
		}
		if err := s.right(g); err != nil {
			return fmt.Errorf("sandbox %s holds %v: %w", sandbox, g, err)
		}
	}
	return nil
}

// Held returns what sandboxes hold.
func (s *Sandboxes) Held() map[string]Grant {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := map[string]Grant{}
	for sandbox, g := range s.held {
		out[sandbox] = g
	}
	return out
}

// Ended notes that a sandbox was torn down, and whether its address has to rest: not where the agent's memory was lost since.
// What nobody was told is nobody's end.
func (s *Sandboxes) Ended(sandbox string, rests bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.held[sandbox]
	if !ok {
		return
	}
	delete(s.held, sandbox)
	delete(s.cut, sandbox)
	if s.ended == nil {
		s.ended = map[netip.Addr]time.Time{}
	}
	if rests {
		s.ended[g.Address] = s.Now()
	}
}

// Rebooted ends all, and no cool-down holds across it: memory may be lost with the machine's.
func (s *Sandboxes) Rebooted() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.held)
	clear(s.cut)
	clear(s.ended)
}

// CoolDownsLost says that the memory of them is gone.
func (s *Sandboxes) CoolDownsLost() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.ended)
}

// Taken notes that somebody else takes an address (a /32) or a prefix from the instance: who holds any of it has lost it, and
// until nobody can know.
func (s *Sandboxes) Taken(p netip.Prefix, until time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.excused == nil {
		s.excused = map[netip.Prefix]time.Time{}
	}
	s.excused[p] = until
	for sandbox, g := range s.held {
		if p.Contains(g.Address) {
			s.cutOff(sandbox)
		}
	}
}

func (s *Sandboxes) excusedUntil(a netip.Addr) (until time.Time) {
	for p, at := range s.excused {
		if p.Contains(a) && at.After(until) {
			until = at
		}
	}
	return until
}

func (s *Sandboxes) cutOff(sandbox string) {
	if s.cut == nil {
		s.cut = map[string]bool{}
	}
	s.cut[sandbox] = true
}
