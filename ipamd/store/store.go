package store

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
)

// Errors that callers branch on.
var (
	// ErrNoAddress: every candidate is in use, cooling or being given back, by itself or with its ENI.
	ErrNoAddress = errors.New("no free address")
	// ErrOtherPod: the sandbox belongs to another pod.
	ErrOtherPod = errors.New("held by another pod")
	// ErrVLANHeld: another pod's sandbox still has the VLAN id on this node.
	ErrVLANHeld = errors.New("still held by another pod")
	// ErrReleased: the pod's branch ENI was already given back to the ledger.
	ErrReleased = errors.New("already released")
	// ErrInUse: something of the ENI is held or cooling.
	ErrInUse = errors.New("in use")
	// ErrNotWritten: the disk is full, or read-only, or broken. What was asked for is not done.
	ErrNotWritten = errors.New("this node's allocations can't be written")
)

// Options for Open. The zero value of each is usable.
type Options struct {
	CoolDown time.Duration
	Now      func() time.Time
	Disk     Disk
	// NotWritten is told of each write that failed. The store is locked meanwhile.
	NotWritten func(error)
}

// Store is safe for use by several goroutines.
type Store struct {
	path string
	opt  Options

	mu  sync.Mutex
	cur *state
	// unsure is set when a write failed half way, so that disk and memory may differ: the next change writes all again.
	unsure bool
	// fresh is set where there was no file.
	fresh bool
}

// Open reads the state at path. A file that can't be understood is renamed to path + ".corrupt-<unix time>", and kept
// is that name; the store then starts empty and the caller has to say so and to find out what is in use. An error is
// returned only where the disk itself fails.
func Open(path string, o Options) (s *Store, kept string, err error) {
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Disk == nil {
		o.Disk = OS{}
	}
	s = &Store{path: path, opt: o, cur: &state{}}
	b, err := o.Disk.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		s.fresh = true
		return s, "", nil
	}
	if err != nil {
		return nil, "", fmt.Errorf("read the allocations of this node: %w", err)
	}
	cur, derr := decode(b)
	if derr != nil {
		kept = fmt.Sprintf("%s.corrupt-%d", path, o.Now().Unix())
		if err := o.Disk.Rename(path, kept); err != nil {
			return nil, "", fmt.Errorf("keep the unreadable %s aside (%v): %w", path, derr, err)
		}
		return s, kept, nil
	}
	// The file has the machine's time, which may have been set since: nothing rests for longer than one cool-down from now.
	// From here on the clock that can't be set counts.
	for i, c := range cur.Cooling {
		now := o.Now()
		cur.Cooling[i].Until = now.Add(min(c.Until.Sub(now), o.CoolDown))
	}
	s.cur = cur
	return s, "", nil
}

// change applies f to a copy, writes it, and only then makes it current. f returns false for "nothing to write".
func (s *Store) change(f func(*state) (bool, error)) error {
	next := s.cur.clone()
	now := s.opt.Now()
	next.Cooling = slices.DeleteFunc(next.Cooling, func(c Cooling) bool { return !now.Before(c.Until) })
	write, err := f(next)
	if err != nil || (!write && !s.unsure) {
		return err
	}
	if err := save(s.opt.Disk, s.path, next); err != nil {
		// The rename may or may not have happened. Memory keeps the old state; holding too much is safe where an
		// Add failed, and a failed Del is repeated by the runtime.
		s.unsure = true
		err = fmt.Errorf("%w: %w", ErrNotWritten, err)
		if s.opt.NotWritten != nil {
			s.opt.NotWritten(err)
		}
		return err
	}
	s.cur, s.unsure = next, false
	return nil
}

// Get returns what a sandbox's attachment holds.
func (s *Store) Get(k Key) (Allocation, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cur.get(k)
}

func (s *state) get(k Key) (Allocation, bool) {
	if i := slices.IndexFunc(s.Allocations, func(a Allocation) bool { return a.Key == k }); i >= 0 {
		return s.Allocations[i], true
	}
	return Allocation{}, false
}

// existing is the answer to a repeated request.
func (s *state) existing(k Key, p Pod) (Allocation, bool, error) {
	a, ok := s.get(k)
	if ok && a.Pod.UID != p.UID {
		return a, true, fmt.Errorf("sandbox %s: %w %s (%s)", k, ErrOtherPod, a.Pod, a.Pod.UID)
	}
	return a, ok, nil
}

// Card is what can be had of a network card.
type Card struct {
	Number     int
	Candidates []Regular
}

// LackingError is ErrNoAddress with the network cards that have no address. Nothing was given of the others either.
type LackingError struct{ Cards []int }

func (e *LackingError) Error() string {
	if slices.Equal(e.Cards, []int{0}) {
		return ErrNoAddress.Error()
	}
	return fmt.Sprintf("%v on network card %s", ErrNoAddress, strings.ReplaceAll(strings.Trim(fmt.Sprint(e.Cards), "[]"), " ", ", "))
}

// Is makes it an ErrNoAddress.
func (e *LackingError) Is(target error) bool { return target == ErrNoAddress }

// AssignRegular gives the sandbox the first candidate that is free, and the first one of each further card: all of them in
// one write, or none. A sandbox that holds something already keeps that.
func (s *Store) AssignRegular(k Key, network string, p Pod, candidates []Regular, further ...Card) (Allocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok, err := s.cur.existing(k, p)
	if ok || err != nil {
		return a, err
	}
	err = s.change(func(n *state) (bool, error) {
		busy := n.busy()
		var got []Regular
		var lacking []int
		for _, card := range append([]Card{{0, candidates}}, further...) {
			at := slices.IndexFunc(card.Candidates, func(c Regular) bool {
				return !busy[c.Address] && !slices.Contains(n.Retiring, c.ENIID) && !n.leaving(c.ENIID, c.Address)
			})
			if at < 0 {
				lacking = append(lacking, card.Number)
				continue
			}
			got = append(got, card.Candidates[at])
		}
		if len(lacking) > 0 {
			return false, &LackingError{lacking}
		}
		a = Allocation{Key: k, Network: network, Pod: p, Since: s.opt.Now().UTC(), Regular: &got[0]}
		if len(got) > 1 {
			a.Further = got[1:]
		}
		n.Allocations = append(n.Allocations, a)
		return true, nil
	})
	return a, err
}

func (s *state) busy() map[netip.Addr]bool {
	busy := make(map[netip.Addr]bool, len(s.Allocations)+len(s.Cooling))
	for _, a := range s.Allocations {
		for _, r := range a.Regulars() {
			busy[r.Address] = true
		}
	}
	for _, c := range s.Cooling {
		busy[c.Address] = true
	}
	return busy
}

func (s *state) leaving(eniID string, a netip.Addr) bool {
	return slices.ContainsFunc(s.Leaving, func(l Leaving) bool { return l.holds(eniID, a) })
}

// AssignBranch notes that the sandbox has the pod's branch ENI. It refuses a VLAN id that another pod still holds here,
// and a pod whose release was already said.
func (s *Store) AssignBranch(k Key, network string, p Pod, b Branch) (Allocation, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, ok, err := s.cur.existing(k, p)
	if ok || err != nil {
		return a, err
	}
	err = s.change(func(n *state) (bool, error) {
		for _, other := range n.Allocations {
			if other.Branch != nil && other.Branch.VLAN == b.VLAN && other.Pod.UID != p.UID {
				return false, fmt.Errorf("VLAN %d is %w, %s (%s)", b.VLAN, ErrVLANHeld, other.Pod, other.Pod.UID)
			}
		}
		if slices.ContainsFunc(n.Released, func(r Released) bool { return r.PodUID == p.UID }) {
			return false, fmt.Errorf("the branch ENI of pod %s (%s) was %w", p, p.UID, ErrReleased)
		}
		a = Allocation{Key: k, Network: network, Pod: p, Since: s.opt.Now().UTC(), Branch: &b}
		n.Allocations = append(n.Allocations, a)
		return true, nil
	})
	return a, err
}

// Free ends what a sandbox's attachment holds; its regular addresses start to cool. An unknown sandbox is found = false.
func (s *Store) Free(k Key) (a Allocation, found bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	a, found = s.cur.get(k)
	if !found {
		return a, false, nil
	}
	err = s.change(func(n *state) (bool, error) {
		n.Allocations = slices.DeleteFunc(n.Allocations, func(a Allocation) bool { return a.Key == k })
		for _, r := range a.Regulars() {
			n.cool(Cooling{r.Address, r.ENIID, s.opt.Now().Add(s.opt.CoolDown)})
		}
		return true, nil
	})
	return a, true, err
}

func (s *state) cool(c Cooling) {
	if s.busy()[c.Address] {
		return
	}
	s.Cooling = append(s.Cooling, c)
}

// Cool lets an address rest that was found in use without an allocation and is not in use any more.
func (s *Store) Cool(eniID string, addr netip.Addr) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		n.cool(Cooling{addr, eniID, s.opt.Now().Add(s.opt.CoolDown)})
		return true, nil
	})
}

// Release notes, before it is said to the ledger, that nothing of the pod is left here. It fails with ErrInUse while a
// sandbox of the pod holds its branch ENI. A repeated call returns the first one's entry.
func (s *Store) Release(r Released) (Released, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := slices.IndexFunc(s.cur.Released, func(o Released) bool { return o.PodUID == r.PodUID }); i >= 0 {
		return s.cur.Released[i], nil
	}
	err := s.change(func(n *state) (bool, error) {
		for _, a := range n.Allocations {
			if a.Branch != nil && a.Pod.UID == r.PodUID {
				return false, fmt.Errorf("branch ENI %s of pod %s: %w by sandbox %s", a.Branch.ENIID, a.Pod, ErrInUse, a.Key)
			}
		}
		n.Released = append(n.Released, r)
		return true, nil
	})
	return r, err
}

// Forget drops a release that the ledger has heard: it no longer binds that pod.
func (s *Store) Forget(podUID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		return drop(&n.Released, func(r Released) bool { return r.PodUID == podUID }), nil
	})
}

// drop takes out of the list what is over, and says whether there was any.
func drop[T any](list *[]T, over func(T) bool) bool {
	before := len(*list)
	*list = slices.DeleteFunc(*list, over)
	return len(*list) != before
}

// Retire makes sure that nothing of the ENI is handed out from now on. It fails with ErrInUse where something of it is
// held or cooling.
func (s *Store) Retire(eniID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		if slices.Contains(n.Retiring, eniID) {
			return false, nil
		}
		if addr, open := n.unsettled(); open {
			return false, fmt.Errorf("retire %s: address %s that was taken over may be of it: %w", eniID, addr, ErrInUse)
		}
		for _, a := range n.Allocations {
			for _, r := range a.Regulars() {
				if r.ENIID == eniID {
					return false, fmt.Errorf("retire %s: address %s: %w by sandbox %s", eniID, r.Address, ErrInUse, a.Key)
				}
			}
		}
		for _, c := range n.Cooling {
			if c.ENIID == eniID {
				return false, fmt.Errorf("retire %s: address %s is cooling: %w", eniID, c.Address, ErrInUse)
			}
		}
		n.Retiring = append(n.Retiring, eniID)
		return true, nil
	})
}

// Making notes a new ENI as one on its way out: it is taken back where it can't be attached as it should be, and nothing of it
// is handed out until Retired says that it stays.
func (s *Store) Making(eniID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		n.Retiring = append(n.Retiring, eniID)
		return true, nil
	})
}

// Retired drops the note of an ENI that is gone, or that is used again after all.
func (s *Store) Retired(eniID string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		return drop(&n.Retiring, func(id string) bool { return id == eniID }), nil
	})
}

// Leave makes sure that nothing of the addresses and prefixes is handed out from now on. Those of which something is held
// or cooling stay as they are; the others are returned.
func (s *Store) Leave(eniID string, units []netip.Prefix) (leaving []netip.Prefix, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	err = s.change(func(n *state) (bool, error) {
		busy := n.busy()
		for _, u := range units {
			if !anyIn(u, busy) && !n.leaving(eniID, u.Addr()) {
				n.Leaving = append(n.Leaving, Leaving{u, eniID})
				leaving = append(leaving, u)
			}
		}
		return len(leaving) > 0, nil
	})
	if err != nil {
		return nil, err
	}
	return leaving, nil
}

// Left drops the notes of what the ENI has no more, or what EC2 has given it again.
func (s *Store) Left(eniID string, units []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.change(func(n *state) (bool, error) {
		return drop(&n.Leaving, func(l Leaving) bool { return l.ENIID == eniID && slices.Contains(units, l.Prefix) }), nil
	})
}

// View is a copy of the state for those who decide. Cooling holds only what still cools.
type View struct {
	Allocations []Allocation
	Cooling     []Cooling
	Released    []Released
	Retiring    []string
	Leaving     []Leaving
	TakenOver   *TakenOver // nil: not yet decided
}

// View returns the state of this moment.
func (s *Store) View() View {
	s.mu.Lock()
	defer s.mu.Unlock()
	c, now := s.cur.clone(), s.opt.Now()
	c.Cooling = slices.DeleteFunc(c.Cooling, func(c Cooling) bool { return !now.Before(c.Until) })
	return View{c.Allocations, c.Cooling, c.Released, c.Retiring, c.Leaving, c.TakenOver}
}
