package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
)

// Removal says what a sandbox may have left, as far as its runtime still knows. Only Owner must be set: the marks of the
// links tell the rest.
type Removal struct {
	Owner        Owner
	PodNamespace string
	PodName      string
	// HostVeths are the names that the pod's host veth may have.
	HostVeths []string
	VLAN      int        // 0: not known, or not a branch pod
	Address   netip.Addr // invalid: not known
	// Regular is set when the result is there and names no VLAN link, so that none need be looked for.
	Regular bool
	// Further are the interfaces on further network cards that the result names.
	Further []FurtherLeft
}

// Removed is what a teardown found, for the log.
type Removed struct {
	Links   []string
	VLAN    int
	Address netip.Addr
	Further []netip.Addr // of interfaces on further network cards
}

// view is what a teardown decides by.
type view struct {
	veths    map[string]observed
	vlan     int // 0: none is known of
	vlanLink observed
	address  netip.Addr
	// mode is a branch pod's, if a mark of ours has told it.
	marked bool
	mode   Mode
	// addressHeldBy is the ifindex of the link that the table of local pods has the address on, 0 for none.
	addressHeldBy int
	further       []furtherView // of a regular pod
}

// teardownSteps decides what goes. It never names what belongs to another sandbox, see the package comment.
func teardownSteps(hostVeths []string, v view) []Step {
	free := func(o observed) bool { return o.holder != other }
	ours := func(o observed) bool { return o.holder == us || o.holder == leftover }
	var steps []Step
	if v.vlan != 0 {
		steps = branchRules(hostVeths, v, free)
	} else if v.address.IsValid() {
		held := v.addressHeldBy
		for _, name := range hostVeths {
			if o := v.veths[name]; ours(o) && o.index == held {
				held = 0
			}
		}
		if held == 0 {
			steps = append(steps, DeleteRule{fromAddress(v.address)})
		}
	}
	for _, f := range v.further {
		if f.address.IsValid() && (f.addressHeldBy == 0 || ours(f.link) && f.link.index == f.addressHeldBy) {
			steps = append(steps, DeleteRule{fromAddress(f.address)})
		}
	}
	for _, name := range hostVeths {
		if ours(v.veths[name]) {
			steps = append(steps, DeleteLink{name})
		}
	}
	for _, f := range v.further {
		if ours(f.link) {
			steps = append(steps, DeleteLink{f.name})
		}
	}
	// The VLAN link goes last: as long as it is there, the next DEL still knows what this one has left undone.
	if v.vlan != 0 && ours(v.vlanLink) {
		steps = append(steps, DeleteLink{VLANLinkName(v.vlan)})
	}
	return steps
}

// branchRules are those that a branch pod's links may have, of the mode and family that the marks tell, or else of all.
func branchRules(hostVeths []string, v view, free func(observed) bool) (steps []Step) {
	strict, standard := true, true
	if v.marked {
		strict, standard = v.mode == Strict, v.mode == Standard
	}
	families := []bool{false, true}
	if v.address.IsValid() {
		families = []bool{v.address.Is6()}
	}
	for _, ipv6 := range families {
		drop := func(priority int, link string) {
			steps = append(steps, DeleteRule{Rule{IPv6: ipv6, Priority: priority, Iif: link, Table: VLANTable(v.vlan)}})
		}
		if strict && free(v.vlanLink) {
			drop(PriorityBranch, VLANLinkName(v.vlan))
		}
		for _, name := range hostVeths {
			if strict && free(v.veths[name]) {
				drop(PriorityBranch, name)
			}
			if standard && free(v.veths[name]) {
				drop(PriorityStandard, name)
			}
		}
	}
	return steps
}

// Teardown removes what the sandbox has on the host; what is in its network namespace goes with the host veth. It needs
// neither that namespace nor the agent, may run any number of times, and touches nothing of a newer sandbox, whatever
// name, VLAN id or address they share. It takes the locks itself.
func Teardown(ctx context.Context, r Removal, lock *Lock) (Removed, error) {
	k, err := openKernel(ctx, r.Owner, -1)
	if err != nil {
		return Removed{}, err
	}
	defer k.close()
	if r.PodName != "" {
		if err := lock.Pod(ctx, r.PodNamespace, r.PodName); err != nil {
			return Removed{}, err
		}
	}
	v, err := k.view(ctx, r, lock)
	if err != nil {
		return Removed{}, err
	}
	removed := Removed{VLAN: v.vlan, Address: v.address}
	for _, f := range v.further {
		if f.address.IsValid() && f.link.holder != other {
			removed.Further = append(removed.Further, f.address)
		}
	}
	var errs []error
	for _, step := range teardownSteps(r.HostVeths, v) {
		if err := ctx.Err(); err != nil {
			return removed, errors.Join(append(errs, &StepError{Step: step, Err: fmt.Errorf("not begun: %w", context.Cause(ctx))})...)
		}
		if err := k.do(step); err != nil {
			errs = append(errs, err)
			continue
		}
	}
	for _, d := range k.doomed {
		removed.Links = append(removed.Links, d.step.Name)
	}
	if err := k.flush(); err != nil {
		errs = append(errs, err)
	}
	return removed, errors.Join(errs...)
}

func (v *view) learn(m Mark) { v.vlan, v.address, v.marked, v.mode = m.VLAN, m.Address, true, m.Mode }

func (k *kernel) view(ctx context.Context, r Removal, lock *Lock) (view, error) {
	v := view{veths: map[string]observed{}, vlan: r.VLAN, address: r.Address}
	mine, further := false, 0
	for _, name := range r.HostVeths {
		o, err := k.observe(name, r.Owner)
		if err != nil {
			return view{}, err
		}
		v.veths[name] = o
		if o.holder == us || o.holder == leftover {
			k.index[Host][name] = o.index
		}
		if o.holder == us {
			mine = true
			// The mark is written with the link and can't be lost; the runtime's cached result can.
			v.learn(o.mark)
			further = o.mark.Further
		}
	}
	known := mine || r.Regular || v.vlan != 0
	if !known {
		var err error
		if v.vlan, known, err = k.findVLAN(ctx, r.Owner); err != nil {
			return view{}, err
		}
	}
	var err error
	if v.further, err = k.viewFurther(ctx, r, further, known, lock); err != nil {
		return view{}, err
	}
	if v.vlan != 0 {
		if err := lock.VLAN(ctx, v.vlan); err != nil {
			return view{}, err
		}
		name := VLANLinkName(v.vlan)
		if v.vlanLink, err = k.observe(name, r.Owner); err != nil {
			return view{}, err
		}
		if v.vlanLink.holder == us || v.vlanLink.holder == leftover {
			k.index[Host][name] = v.vlanLink.index
		}
		if v.vlanLink.holder == us {
			v.learn(v.vlanLink.mark)
		}
		return v, nil
	}
	if v.address.IsValid() {
		v.addressHeldBy, err = k.localPodLink(v.address)
	}
	return v, err
}

// findVLAN looks for the sandbox's VLAN link when neither a result nor a host veth tells its id (the network namespace
// died, taking the veth along). It asks for each possible name: there are few, and a dump of all links would grow with
// the node's pods and be interrupted by their churn. A link that nobody has marked is the answer only when no other is:
// its maker may be at work, and the VLAN's lock will tell.
func (k *kernel) findVLAN(ctx context.Context, owner Owner) (id int, marked bool, err error) {
	unmarked := 0
	for id := 1; id <= MaxVLAN; id++ {
		if err := ctx.Err(); err != nil {
			return 0, false, fmt.Errorf("look for the VLAN link of sandbox %s: %w", owner, context.Cause(ctx))
		}
		o, err := k.observe(VLANLinkName(id), owner)
		if err != nil {
			return 0, false, err
		}
		switch o.holder {
		case us:
			return id, true, nil
		case leftover:
			unmarked = id
		}
	}
	return unmarked, false, nil
}

// localPodLink is the index of the link that the table of local pods has this very address on; 0 when it has none.
func (k *kernel) localPodLink(address netip.Addr) (int, error) {
	route, err := k.fibMatch(Host, address)
	if err != nil || route.table != LocalPodsTable {
		return 0, err
	}
	return route.index, nil
}
