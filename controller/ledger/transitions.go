package ledger

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	v1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
)

// ErrFull: the instance has as many branch ENIs as its type allows, or every VLAN id is taken.
var ErrFull = errors.New("no branch ENI is free on this instance")

// ErrMoved: the slot is no longer what the caller believed it to be. The caller reads again and starts over.
var ErrMoved = errors.New("the ledger has moved on")

// Pod is whom a slot is given to. The UID decides; the names are for people and look-ups.
type Pod struct {
	UID             types.UID
	Namespace, Name string
}

// ENI is a branch ENI as EC2 made it.
type ENI struct {
	ID, MAC, PrivateIP, SubnetCIDR string
	// IPv6 and SubnetIPv6CIDR are empty where the subnet has no IPv6.
	IPv6, SubnetIPv6CIDR string
}

// Evidence is what speaks for a pod being off its node where the node itself does not confirm it: that the instance is
// gone is enough, else all of the rest is needed.
type Evidence struct {
	// InstanceGone: EC2 says that the instance is terminated, or does not know it any more.
	InstanceGone bool
	// PodEnded: the pod is gone from the API server, or has run to its end.
	PodEnded bool
	// AgentGone: the CNINode does not exist, or no longer asks for security groups for pods.
	AgentGone bool
	// Unwired: EC2 says that the branch ENI is not associated, or that the instance does not run.
	Unwired bool
}

// Slot returns the slot of a VLAN id, nil where it was never given. It points into s.
func Slot(s *v1.BranchLedgerSpec, vlan int32) *v1.Slot {
	for i := range s.Slots {
		if s.Slots[i].VLANID == vlan {
			return &s.Slots[i]
		}
	}
	return nil
}

// Of returns the slot that belongs to the pod, in whatever state, or nil. It points into s.
func Of(s *v1.BranchLedgerSpec, pod types.UID) *v1.Slot {
	if pod == "" {
		return nil
	}
	for i := range s.Slots {
		if s.Slots[i].PodUID == pod {
			return &s.Slots[i]
		}
	}
	return nil
}

// Used counts the VLAN ids that are not free: what EC2 counts against the instance type's limit, or may.
func Used(s *v1.BranchLedgerSpec) int {
	n := 0
	for i := range s.Slots {
		if s.Slots[i].State != v1.Free {
			n++
		}
	}
	return n
}

// Assign writes down the intent to make a branch ENI for the pod, and returns its VLAN id. A pod that has a slot keeps
// it, unless that slot is on its way out: then ErrMoved. Errors: ErrFull, ErrMoved.
func Assign(s *v1.BranchLedgerSpec, pod Pod, groups []string, claim string, now time.Time) (int32, error) {
	if have := Of(s, pod.UID); have != nil {
		if have.State == v1.Creating || have.State == v1.Bound {
			return have.VLANID, nil
		}
		return 0, fmt.Errorf("VLAN id %d of pod %s/%s is %s: %w", have.VLANID, pod.Namespace, pod.Name, have.State, ErrMoved)
	}
	if Used(s) >= int(s.Capacity) {
		return 0, ErrFull
	}
	slot := next(s)
	if slot == nil {
		return 0, ErrFull
	}
	*slot = v1.Slot{
		VLANID: slot.VLANID, State: v1.Creating, Since: metav1.NewMicroTime(now), Claim: claim,
		PodUID: pod.UID, PodNamespace: pod.Namespace, PodName: pod.Name, SecurityGroups: slices.Clone(groups),
	}
	return slot.VLANID, nil
}

// next returns the slot to give: the lowest VLAN id never given, else the one that has been free for longest.
func next(s *v1.BranchLedgerSpec) *v1.Slot {
	slices.SortFunc(s.Slots, func(a, b v1.Slot) int { return cmp.Compare(a.VLANID, b.VLANID) })
	for vlan := int32(v1.MinVLANID); vlan <= v1.MaxVLANID; vlan++ {
		if i := int(vlan) - v1.MinVLANID; i >= len(s.Slots) || s.Slots[i].VLANID != vlan {
			s.Slots = slices.Insert(s.Slots, i, v1.Slot{VLANID: vlan, State: v1.Free})
			return &s.Slots[i]
		}
	}
	var oldest *v1.Slot
	for i := range s.Slots {
		if c := &s.Slots[i]; c.State == v1.Free && (oldest == nil || c.Since.Time.Before(oldest.Since.Time)) {
			oldest = c
		}
	}
	return oldest
}

// Made writes down the branch ENI that EC2 made for the claim. An empty ENI takes it back: EC2 knows no such ENI.
func Made(s *v1.BranchLedgerSpec, vlan int32, claim string, eni ENI) error {
	slot, err := in(s, vlan, v1.Creating)
	if err != nil {
		return err
	}
	if slot.Claim != claim {
		return fmt.Errorf("VLAN id %d: claim %s is not the current one: %w", vlan, claim, ErrMoved)
	}
	slot.ENIID, slot.MAC, slot.PrivateIP, slot.SubnetCIDR = eni.ID, eni.MAC, eni.PrivateIP, eni.SubnetCIDR
	slot.IPv6Address, slot.SubnetIPv6CIDR = eni.IPv6, eni.SubnetIPv6CIDR
	return nil
}

// Bind hands the associated branch ENI to the pod. From here on the node may know of it.
func Bind(s *v1.BranchLedgerSpec, vlan int32, pod types.UID, associationID string, now time.Time) error {
	slot, err := in(s, vlan, v1.Creating)
	if err != nil {
		return err
	}
	if slot.PodUID != pod || slot.ENIID == "" {
		return fmt.Errorf("VLAN id %d is pod UID %s's with ENI %q, not %s's: %w", vlan, slot.PodUID, slot.ENIID, pod, ErrMoved)
	}
	slot.AssociationID = associationID
	enter(slot, v1.Bound, now)
	return nil
}

// Adopt takes a pod's branch ENI into the ledger that was lost from it: EC2 has it on the VLAN id, and says that it was
// made for the pod. Error: ErrMoved where the pod has a slot, or the VLAN id another owner.
func Adopt(s *v1.BranchLedgerSpec, a v1.Slot, now time.Time) error {
	if have := Of(s, a.PodUID); have != nil {
		return fmt.Errorf("pod %s/%s has VLAN id %d: %w", a.PodNamespace, a.PodName, have.VLANID, ErrMoved)
	}
	slot := Slot(s, a.VLANID)
	if slot == nil {
		s.Slots = append(s.Slots, v1.Slot{VLANID: a.VLANID, State: v1.Free})
		slot = &s.Slots[len(s.Slots)-1]
	}
	if slot.State != v1.Free && (slot.State != v1.Occupied || slot.ENIID != a.ENIID) {
		return fmt.Errorf("VLAN id %d is %s with ENI %q: %w", a.VLANID, slot.State, slot.ENIID, ErrMoved)
	}
	*slot = a
	enter(slot, v1.Bound, now)
	return nil
}

// Occupy learns that EC2 has another ENI on the VLAN id. The pod loses the slot and is given another one; its own
// half-made ENI must have been deleted before.
func Occupy(s *v1.BranchLedgerSpec, vlan int32, pod types.UID, eniID, associationID string, now time.Time) error {
	slot, err := in(s, vlan, v1.Creating)
	if err != nil {
		return err
	}
	if slot.PodUID != pod {
		return fmt.Errorf("VLAN id %d is pod UID %s's, not %s's: %w", vlan, slot.PodUID, pod, ErrMoved)
	}
	*slot = v1.Slot{VLANID: vlan, ENIID: eniID, AssociationID: associationID}
	enter(slot, v1.Occupied, now)
	return nil
}

// End takes note of a pod's end: what the node never saw may go at once, everything else waits for the node. It says
// whether anything changed.
func End(s *v1.BranchLedgerSpec, pod types.UID, now time.Time) bool {
	slot := Of(s, pod)
	if slot == nil {
		return false
	}
	switch slot.State {
	case v1.Creating:
		enter(slot, v1.Deleting, now)
	case v1.Bound:
		enter(slot, v1.Releasing, now)
	default:
		return false
	}
	return true
}

// Supersede ends the attempt for a pod whose policies give it other groups by now. EC2 ties a claim to what was asked for
// first, so the pod needs a new one. What is Bound keeps its groups. It says whether anything changed.
func Supersede(s *v1.BranchLedgerSpec, pod types.UID, groups []string, now time.Time) bool {
	slot := Of(s, pod)
	if slot == nil || slot.State != v1.Creating || sameSet(slot.SecurityGroups, groups) {
		return false
	}
	return End(s, pod, now)
}

func sameSet(a, b []string) bool {
	missing := func(all []string) func(string) bool {
		return func(v string) bool { return !slices.Contains(all, v) }
	}
	return !slices.ContainsFunc(a, missing(b)) && !slices.ContainsFunc(b, missing(a))
}

// Confirm lets slots cool whose pods have ended and of which the node says that nothing is left. A confirmation for a
// pod that has not ended is ignored: it may be wired again. It says whether anything changed.
func Confirm(s *v1.BranchLedgerSpec, released []v1.Released, now time.Time) bool {
	changed := false
	for _, r := range released {
		slot := Of(s, r.PodUID)
		if slot == nil || slot.State != v1.Releasing || r.VLANID != 0 && r.VLANID != slot.VLANID {
			continue
		}
		enter(slot, v1.Cooling, now)
		changed = true
	}
	return changed
}

// Reclaim lets go of a slot that its node does not confirm. It needs the evidence and twice the cool-down.
func Reclaim(s *v1.BranchLedgerSpec, vlan int32, e Evidence, now time.Time, coolDown time.Duration) bool {
	slot := Slot(s, vlan)
	if slot == nil || slot.State != v1.Releasing || now.Before(slot.Since.Add(2*coolDown)) {
		return false
	}
	if !e.InstanceGone && !(e.PodEnded && e.AgentGone && e.Unwired) {
		return false
	}
	enter(slot, v1.Deleting, now)
	return true
}

// Cool moves what has cooled down on to its deletion. It says whether anything changed.
func Cool(s *v1.BranchLedgerSpec, now time.Time, coolDown time.Duration) bool {
	changed := false
	for i := range s.Slots {
		if slot := &s.Slots[i]; slot.State == v1.Cooling && !now.Before(slot.Since.Add(coolDown)) {
			enter(slot, v1.Deleting, now)
			changed = true
		}
	}
	return changed
}

// Claimed moves an occupied VLAN id on to its deletion: what is on it is one of ours that leaked. Twice the cool-down
// must have passed since it was found.
func Claimed(s *v1.BranchLedgerSpec, vlan int32, now time.Time, coolDown time.Duration) bool {
	slot := Slot(s, vlan)
	if slot == nil || slot.State != v1.Occupied || now.Before(slot.Since.Add(2*coolDown)) {
		return false
	}
	enter(slot, v1.Deleting, now)
	return true
}

// Vacated frees an occupied VLAN id that EC2 no longer has anything on. Twice the cool-down must have passed since it
// was found.
func Vacated(s *v1.BranchLedgerSpec, vlan int32, now time.Time, coolDown time.Duration) bool {
	slot := Slot(s, vlan)
	if slot == nil || slot.State != v1.Occupied || now.Before(slot.Since.Add(2*coolDown)) {
		return false
	}
	free(slot, now)
	return true
}

// Free gives the VLAN id back once EC2 has nothing left of it.
func Free(s *v1.BranchLedgerSpec, vlan int32, now time.Time) error {
	slot, err := in(s, vlan, v1.Deleting)
	if err != nil {
		return err
	}
	free(slot, now)
	return nil
}

// Gone sends every slot to its deletion: the instance no longer exists, so nothing can be left on it.
func Gone(s *v1.BranchLedgerSpec, now time.Time) bool {
	changed := false
	for i := range s.Slots {
		if slot := &s.Slots[i]; slot.State != v1.Free && slot.State != v1.Deleting {
			enter(slot, v1.Deleting, now)
			changed = true
		}
	}
	return changed
}

// Due returns when time alone makes something possible next: a cool-down's end, or an unconfirmed or occupied slot's
// second cool-down. ok is false where nothing waits for time.
func Due(s *v1.BranchLedgerSpec, coolDown time.Duration) (at time.Time, ok bool) {
	for i := range s.Slots {
		slot, wait := &s.Slots[i], time.Duration(0)
		switch slot.State {
		case v1.Cooling:
			wait = coolDown
		case v1.Releasing, v1.Occupied:
			wait = 2 * coolDown
		default:
			continue
		}
		if t := slot.Since.Add(wait); !ok || t.Before(at) {
			at, ok = t, true
		}
	}
	return at, ok
}

func in(s *v1.BranchLedgerSpec, vlan int32, state v1.SlotState) (*v1.Slot, error) {
	slot := Slot(s, vlan)
	if slot == nil {
		return nil, fmt.Errorf("VLAN id %d was never given: %w", vlan, ErrMoved)
	}
	if slot.State != state {
		return nil, fmt.Errorf("VLAN id %d is %s, not %s: %w", vlan, slot.State, state, ErrMoved)
	}
	return slot, nil
}

func enter(slot *v1.Slot, state v1.SlotState, now time.Time) {
	slot.State, slot.Since = state, metav1.NewMicroTime(now)
}

func free(slot *v1.Slot, now time.Time) {
	*slot = v1.Slot{VLANID: slot.VLANID}
	enter(slot, v1.Free, now)
}
