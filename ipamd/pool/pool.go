// Package pool decides how many addresses the node should have and which EC2 steps get it there. It is a pure function
// of a snapshot: it calls nothing and remembers nothing. It knows whole warm ENIs only (WARM_ENI_TARGET); targets in
// addresses and prefixes are for a later version.
package pool

import (
	"cmp"
	"slices"
)

// ENI is one network interface that the agent may use for regular pods.
type ENI struct {
	ID      string
	Primary bool
	Device  int
	// Addresses counts the secondary addresses; InUse and Cooling count those of them that can't be given now.
	Addresses, InUse, Cooling int
	// Retiring ENIs are on their way out: nothing of them counts as free.
	Retiring bool
}

func (e ENI) free() int { return max(0, e.Addresses-e.InUse-e.Cooling) }

// Snapshot is everything the decision depends on.
type Snapshot struct {
	ENIs []ENI
	// Attached counts every interface of the instance: the trunk and those that the agent keeps its hands off, too.
	Attached int
	// MaxENIs is how many interfaces the instance may have; PerENI how many secondary addresses each of them.
	MaxENIs, PerENI int
	// WarmENIs is WARM_ENI_TARGET.
	WarmENIs int
	// KeepTrunkSlot is set while a trunk is wanted and not there.
	KeepTrunkSlot bool
	// Waiting counts the pods that wait for an address at this moment.
	Waiting int
}

// Kind of a step.
type Kind int

const (
	// Assign asks for Count more secondary addresses on the ENI.
	Assign Kind = iota
	// Attach creates an ENI with Count secondary addresses and attaches it.
	Attach
	// Retire detaches and deletes the ENI.
	Retire
)

// Step is one thing to do in EC2.
type Step struct {
	Kind  Kind
	ENIID string // empty for Attach
	Count int
}

// Room says how many more addresses could be had by steps, beyond what is free now.
func Room(s Snapshot) int {
	n := max(0, s.slots()) * s.PerENI
	for _, e := range s.ENIs {
		if !e.Retiring {
			n += max(0, s.PerENI-e.Addresses)
		}
	}
	return n
}

func (s Snapshot) slots() int {
	n := s.MaxENIs - s.Attached
	if s.KeepTrunkSlot {
		n--
	}
	return n
}

// Free counts the addresses that can be given now.
func Free(s Snapshot) (n int) {
	for _, e := range s.ENIs {
		if !e.Retiring {
			n += e.free()
		}
	}
	return n
}

// Plan returns the steps that bring the node to its target, the most useful first. An empty plan means that the target
// is met, or can't be met on this instance.
//
// The target is WarmENIs full ENIs of free addresses, and never less than one address, or than what waits. ENIs that
// are there are filled before another is attached. An ENI is retired only when nothing of it is in use or cooling and
// the rest holds one ENI's worth more than the target (so that one pod coming and going moves nothing), or when its
// slot is what a trunk needs.
func Plan(s Snapshot) []Step {
	target := max(s.WarmENIs*s.PerENI, s.Waiting, 1)
	var steps []Step
	missing := target - Free(s)
	for _, e := range ordered(s.ENIs) {
		if missing <= 0 {
			break
		}
		if n := s.PerENI - e.Addresses; n > 0 && !e.Retiring {
			steps = append(steps, Step{Assign, e.ID, n})
			missing -= n
		}
	}
	for slots := s.slots(); missing > 0 && slots > 0 && s.PerENI > 0; slots-- {
		steps = append(steps, Step{Kind: Attach, Count: s.PerENI})
		missing -= s.PerENI
	}
	if len(steps) > 0 && s.slots() >= 0 {
		return steps
	}
	if id := surplus(s, target); id != "" {
		return append([]Step{{Kind: Retire, ENIID: id}}, steps...)
	}
	return steps
}

// ordered puts the primary first and then goes by device number.
func ordered(enis []ENI) []ENI {
	return slices.SortedFunc(slices.Values(enis), func(a, b ENI) int { return cmp.Compare(a.Device, b.Device) })
}

// surplus returns the ENI to give back, the one with the highest device number first; one at a time, so that each
// decision sees what the last one led to.
func surplus(s Snapshot, target int) string {
	if slices.ContainsFunc(s.ENIs, func(e ENI) bool { return e.Retiring }) {
		return ""
	}
	forTrunk := s.KeepTrunkSlot && s.Attached >= s.MaxENIs
	for _, e := range slices.Backward(ordered(s.ENIs)) {
		if e.Primary || e.InUse > 0 || e.Cooling > 0 {
			continue
		}
		left := Free(s) - e.free()
		if forTrunk && left >= s.Waiting || left >= target+s.PerENI {
			return e.ID
		}
	}
	return ""
}
