package store

import (
	"errors"
	"net/netip"
	"slices"
	"time"
)

// ErrTakenOver: it was decided before, once for the life of this file, whose allocations were there first.
var ErrTakenOver = errors.New("the take-over is done")

// TakenOver is the note that allocations of the node's former agent were taken in, or that there were none to take. Its
// checkpoint is never read again: from then on it is stale.
type TakenOver struct {
	At      time.Time `json:"at"`
	From    string    `json:"from,omitempty"` // the file; empty: there was none
	Pods    int       `json:"pods"`
	Problem string    `json:"problem,omitempty"` // why it could not be read
}

// TakeOver notes that the former agent's allocations were read and takes them in, both in one write. What the state holds
// already for a sandbox or an address stays; taken counts those that came in. It fails with ErrTakenOver where the file of
// this store was there before this run, whatever it holds.
func (s *Store) TakeOver(all []Allocation, note TakenOver) (taken int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.fresh || s.cur.TakenOver != nil {
		return 0, ErrTakenOver
	}
	err = s.change(func(n *state) (bool, error) {
		taken = n.takeIn(all)
		note.At, note.Pods = s.opt.Now().UTC(), taken
		n.TakenOver = &note
		return true, n.check()
	})
	return taken, err
}

// takeIn takes in allocations of sandboxes and addresses that the state holds nothing of, and counts them.
func (s *state) takeIn(all []Allocation) (taken int) {
	busy := s.busy()
	for _, a := range all {
		_, known := s.get(a.Key)
		if known || a.Regular == nil || busy[a.Regular.Address] || s.leaving(a.Regular.ENIID, a.Regular.Address) {
			continue
		}
		busy[a.Regular.Address] = true
		s.Allocations = append(s.Allocations, a)
		taken++
	}
	return taken
}

// Recall takes in what this store has forgotten and others remember, and counts it. What the state holds already for a sandbox or an
// address stays. Nothing of it is the former agent's, see IsTakenOver.
func (s *Store) Recall(all []Allocation) (recalled int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.change(func(n *state) (bool, error) {
		if n.TakenOver != nil {
			all = slices.Clone(all)
			for i := range all {
				if at := n.TakenOver.At; all[i].Since.Before(at) {
					all[i].Since = at
				}
			}
		}
		recalled = n.takeIn(all)
		return recalled > 0, n.check()
	})
	if err != nil {
		return 0, err
	}
	return recalled, nil
}

// MayTakeOver says whether TakeOver has not been called for this file.
func (s *Store) MayTakeOver() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh && s.cur.TakenOver == nil
}

// IsTakenOver says whether an allocation is the former agent's: it is older than the take-over from a checkpoint.
func (v View) IsTakenOver(a Allocation) bool {
	return v.TakenOver != nil && v.TakenOver.From != "" && a.Regular != nil && a.Since.Before(v.TakenOver.At)
}

// Settled says whether it is known of which ENI the address is. What was taken over is not, at first.
func (r Regular) Settled() bool { return r.ENIID != "" }

// Settle completes an allocation that was taken over: its pod's UID, and where its address is. What is known already
// stays as it is; an empty uid and a nil where say nothing.
func (s *Store) Settle(k Key, uid string, where *Regular) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (write bool, _ error) {
		at := slices.IndexFunc(n.Allocations, func(a Allocation) bool { return a.Key == k })
		if at < 0 {
			return false, nil
		}
		a := &n.Allocations[at]
		if a.Pod.UID == "" && uid != "" {
			a.Pod.UID, write = uid, true
		}
		if a.Regular != nil && !a.Regular.Settled() && where != nil && where.Address == a.Regular.Address {
			r := *where // the old one may be in somebody's View
			a.Regular, write = &r, true
		}
		return write, nil
	})
}

// unsettled says whether it is open of which ENI something is that a pod holds.
func (s *state) unsettled() (netip.Addr, bool) {
	for _, a := range s.Allocations {
		if a.Regular != nil && !a.Regular.Settled() {
			return a.Regular.Address, true
		}
	}
	return netip.Addr{}, false
}
