package ec2

import (
	"context"
	"slices"
	"sync"
	"time"
)

// Fault is something that goes wrong with calls of one API.
type Fault struct {
	API  string // for example CreateNetworkInterface
	Role string // of the caller; empty: any
	// After is how many matching calls pass first. Times is how many are hit then: 0 is one, negative is all.
	After, Times int

	// Delay comes first. It ends early when the client hangs up.
	Delay time.Duration
	// Code refuses the call without effect: RequestLimitExceeded, UnauthorizedOperation, InternalError, …
	// Message may be empty.
	Code, Message string
	// Drop lets the call take effect and closes the connection instead of answering.
	Drop bool
	// Repeat lets it take effect twice, as if it had been sent again on its way. The second answer counts.
	Repeat bool
	// Late answers a description with the ENIs as they were so long ago, within Config.History. Other calls don't mind.
	Late time.Duration
}

// Faults is a script of failures, to be changed while the region runs.
type Faults struct {
	now    func() time.Time
	mu     sync.Mutex
	active []*scripted
	calls  map[string]int
}

type scripted struct {
	Fault
	seen, hit int
}

// Add appends a fault and returns what takes it away again. Where several match a call, the first that is due hits.
func (f *Faults) Add(fault Fault) (remove func()) {
	if fault.Times == 0 {
		fault.Times = 1
	}
	s := &scripted{Fault: fault}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = append(f.active, s)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.active = slices.DeleteFunc(f.active, func(o *scripted) bool { return o == s })
	}
}

// Clear takes all faults away.
func (f *Faults) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.active = nil
}

// Calls says how many calls of an API arrived with a valid signature.
func (f *Faults) Calls(api string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[api]
}

// next counts a call and gives the fault that hits it, if any.
func (f *Faults) next(api, role string) (Fault, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.calls == nil {
		f.calls = make(map[string]int)
	}
	f.calls[api]++
	var due *scripted
	for _, s := range f.active {
		if s.API != api || (s.Role != "" && s.Role != role) {
			continue
		}
		s.seen++
		if due == nil && s.seen > s.After && (s.Times < 0 || s.hit < s.Times) {
			due = s
		}
	}
	if due == nil {
		return Fault{}, false
	}
	due.hit++
	return due.Fault, true
}

// wait returns when the time is over or the client is gone.
func wait(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
