package datapath

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// ErrConflict says that a link has the name we need and is not ours to replace.
var ErrConflict = errors.New("name is taken by a link that is not ours")

// holder says who has a link's name.
type holder int

const (
	nobody holder = iota
	us
	leftover // of an executable that was killed between making a link and marking it; it holds our lock no more
	other
)

type observed struct {
	holder holder
	index  int
	kind   string
	mark   Mark // of us and other, if there is one
	alias  string
}

// classify decides whose a link is. Other programs' links have no mark, and neither our group nor, if they are
// upstream's, are they down, as those of our older versions are until they are marked.
func classify(l linkState, owner Owner) observed {
	o := observed{holder: other, index: l.index, kind: l.kind, alias: l.alias}
	mark, err := ParseMark(l.alias)
	switch {
	case err == nil && mark.Is(owner):
		o.holder, o.mark = us, mark
	case err == nil:
		o.mark = mark
	case l.alias == "" && (l.kind == "veth" || l.kind == "vlan") && (l.group == linkGroup || !l.up):
		o.holder = leftover
	}
	return o
}

func (k *kernel) observe(name string, owner Owner) (observed, error) {
	r := getLinkRequest(name)
	err := k.one(Host, r)
	if errors.Is(err, unix.ENODEV) {
		return observed{}, nil
	}
	if err != nil {
		return observed{}, fmt.Errorf("look at link %s: %w", name, err)
	}
	return classify(parseLink(r.reply), owner), nil
}

// claim frees a name for the sandbox, or says why it may not. Nobody has it when free is false. Two pods may need the same
// name: "a.1", and "a" for its first further interface. Neither takes it from the other, which may be alive.
func (k *kernel) claim(name string, mark Mark) (freed bool, err error) {
	owner := k.owner
	o, err := k.observe(name, owner)
	if err != nil || o.holder == nobody {
		return false, err
	}
	if o.holder == other {
		switch {
		case o.mark.ContainerID == "":
			return false, fmt.Errorf("%w: %s %s (ifalias %q): find out who made it, and delete it if nothing uses it", ErrConflict, o.kind, name, o.alias)
		case o.mark.ContainerID == markedID(owner.ContainerID):
			return false, fmt.Errorf("%w: %s is this sandbox's interface %s already, a pod gets one interface from this network", ErrConflict, name, o.mark.IfName)
		case o.mark.Number != mark.Number:
			return false, fmt.Errorf("%w: %s is that of another pod (ifalias %q): a pod's interface number n and a pod called <pod>.<n> have the same name on the host, rename one of the two", ErrConflict, name, o.alias)
		}
	}
	if err := k.dropAddressRule(o); err != nil {
		return false, err
	}
	if err := k.one(Host, deleteLinkRequest(o.index)); err != nil && !errors.Is(err, unix.ENODEV) {
		return false, fmt.Errorf("replace link %s of sandbox %s: %w", name, o.mark.Owner, err)
	}
	return true, nil
}

// dropAddressRule deletes the rule for the address of a regular pod whose link is about to be replaced. The link's mark
// is the last that knows the address when the runtime has lost the result; the rule is another's when the address is.
func (k *kernel) dropAddressRule(o observed) error {
	a := o.mark.Address
	if o.kind != "veth" || o.mark.VLAN != 0 || !a.IsValid() {
		return nil
	}
	if held, err := k.localPodLink(a); err != nil || held != o.index {
		return err
	}
	return k.deleteRules(Rule{IPv6: a.Is6(), Priority: PriorityFromPod, From: a})
}

func (k *kernel) addVLAN(s AddVLAN) error {
	_, err := k.addLink(s, s.Name, s.Mark, true, func() *request { return vlanRequest(s) })
	return err
}

// hasIPv6 says whether the kernel has IPv6: one that has not refuses settings of it.
func hasIPv6() bool { return unix.Access("/proc/sys/net/ipv6", unix.F_OK) == nil }

func (k *kernel) addVeth(s AddVeth) error {
	l, err := k.addLink(s, s.Host, s.Mark, !hasIPv6(), func() *request { return vethRequest(s, k.podNS) })
	if err == nil {
		k.index[Pod][s.Pod] = l.peer
		k.later(s, Pod, upRequest(l.peer))
	}
	return err
}

// addLink makes a link and looks at it with one send, and marks it with the next. Where its name is taken by an older
// sandbox whose DEL has not come yet, that one's link is replaced.
func (k *kernel) addLink(step Step, name string, mark Mark, linkLocal bool, make func() *request) (linkState, error) {
	made, seen := make(), getLinkRequest(name)
	if err := k.host.exchange(made, seen); err != nil {
		return linkState{}, err
	}
	if errors.Is(made.err, unix.EEXIST) {
		freed, err := k.claim(name, mark)
		if err != nil {
			return linkState{}, err
		}
		if freed {
			made, seen = make(), getLinkRequest(name)
			if err := k.host.exchange(made, seen); err != nil {
				return linkState{}, err
			}
		}
	}
	if made.err != nil {
		return linkState{}, made.err
	}
	if seen.err != nil {
		return linkState{}, fmt.Errorf("look up the new link %s: %w", name, seen.err)
	}
	l := parseLink(seen.reply)
	k.index[Host][name] = l.index
	k.later(step, Host, markRequest(l.index, mark, linkLocal))
	return l, nil
}

// doomed is a link that is to go.
type doomed struct {
	step  DeleteLink
	index int
}

// doom notes that a link goes with the next flush.
func (k *kernel) doom(s DeleteLink) error {
	index, ok := k.index[Host][s.Name]
	if !ok {
		// We have not seen this link: a step that failed in its middle is being undone. Somebody else's stays.
		o, err := k.observe(s.Name, k.owner)
		if err != nil || o.holder != us && o.holder != leftover {
			return err
		}
		index = o.index
	}
	delete(k.index[Host], s.Name)
	k.doomed = append(k.doomed, doomed{s, index})
	return nil
}

// deleteDoomed deletes links by index: what has a name by now may be another's. Several go as one group, with one wait
// of the kernel for its readers, which is most of what a deletion costs. The group is named after the first one's index,
// so no other executable uses it, and is there for the time of one send only.
func (k *kernel) deleteDoomed() error {
	links := k.doomed
	k.doomed = nil
	if len(links) == 0 {
		return nil
	}
	gone := func(err error) error {
		if errors.Is(err, unix.ENODEV) {
			return nil
		}
		return err
	}
	if len(links) == 1 {
		return stepError(links[0].step, gone(k.one(Host, deleteLinkRequest(links[0].index))))
	}
	group := doomedGroup | uint32(links[0].index)
	var requests []*request
	for _, l := range links {
		requests = append(requests, groupRequest(l.index, group))
	}
	requests = append(requests, deleteGroupRequest(group))
	if err := k.host.exchange(requests...); err != nil {
		return stepError(links[0].step, err)
	}
	var errs []error
	for i, l := range links {
		errs = append(errs, stepError(l.step, gone(requests[i].err)))
	}
	return errors.Join(append(errs, stepError(links[0].step, gone(requests[len(links)].err)))...)
}
