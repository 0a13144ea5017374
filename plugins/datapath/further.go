package datapath

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// This file finds what a sandbox has beside its first interface. A pod with one, as nearly all have, costs it no call.

// FurtherLeft is what a runtime still knows of a pod's further interface.
type FurtherLeft struct {
	Number   int
	HostVeth string
	Address  netip.Addr // invalid: not known
}

// furtherView is what a teardown decides by for a further interface.
type furtherView struct {
	name    string
	link    observed
	address netip.Addr
	// addressHeldBy is the ifindex of the link that the table of local pods has the address on, 0 for none.
	addressHeldBy int
}

// viewFurther looks at the interfaces that the result names, and at those that the first one's mark counts; where it is not
// known that these are all, at all that there could be. The VLAN id's lock is not held yet.
func (k *kernel) viewFurther(ctx context.Context, r Removal, counted int, known bool, lock *Lock) ([]furtherView, error) {
	candidates, err := k.furtherCandidates(r, counted, known)
	if err != nil {
		return nil, err
	}
	var views []furtherView
	for _, c := range candidates {
		if err := ctx.Err(); err != nil {
			return nil, fmt.Errorf("look at link %s: %w", c.HostVeth, context.Cause(ctx))
		}
		if r.PodName != "" {
			// Another pod may have the name, see claim: its ADD may be at work.
			if err := lock.Pod(ctx, r.PodNamespace, FurtherPodName(r.PodName, c.Number)); err != nil {
				return nil, err
			}
		}
		v := furtherView{name: c.HostVeth, address: c.Address}
		if v.link, err = k.observe(c.HostVeth, r.Owner); err != nil {
			return nil, err
		}
		switch v.link.holder {
		case us:
			v.address = v.link.mark.Address
			k.index[Host][v.name] = v.link.index
		case leftover:
			k.index[Host][v.name] = v.link.index
		}
		if v.address.IsValid() {
			if v.addressHeldBy, err = k.localPodLink(v.address); err != nil {
				return nil, err
			}
		}
		views = append(views, v)
	}
	return views, nil
}

func (k *kernel) furtherCandidates(r Removal, counted int, known bool) ([]FurtherLeft, error) {
	if known && counted == 0 {
		return r.Further, nil
	}
	most := counted
	if !known {
		most = MaxFurther
	}
	out := slices.Clone(r.Further)
	var derived []FurtherLeft
	for number := 1; number <= most; number++ {
		for _, name := range furtherHostVeths(r.HostVeths, r.PodNamespace, r.PodName, number) {
			if !slices.ContainsFunc(out, func(l FurtherLeft) bool { return l.HostVeth == name }) {
				derived = append(derived, FurtherLeft{Number: number, HostVeth: name})
			}
		}
	}
	there, err := k.present(derived)
	return append(out, there...), err
}

// furtherHostVeths are the names that a further interface of the pod may have on the host, by those that its first may
// have. Strict branch pods have none.
func furtherHostVeths(first []string, namespace, pod string, number int) (names []string) {
	if pod == "" {
		return nil
	}
	hash := HostVethName("", namespace, pod)
	for _, name := range first {
		if prefix, ok := strings.CutSuffix(name, hash); ok && prefix != BranchVethPrefix {
			names = append(names, HostVethName(prefix, namespace, FurtherPodName(pod, number)))
		}
	}
	return names
}

// present are those of which a link is there, asked for with one send.
func (k *kernel) present(list []FurtherLeft) (there []FurtherLeft, err error) {
	requests := make([]*request, len(list))
	for i, l := range list {
		requests[i] = getLinkRequest(l.HostVeth)
	}
	if err := k.host.exchange(requests...); err != nil {
		return nil, err
	}
	for i, l := range list {
		switch err := requests[i].err; {
		case err == nil:
			there = append(there, l)
		case !errors.Is(err, unix.ENODEV):
			return nil, fmt.Errorf("look at link %s: %w", l.HostVeth, err)
		}
	}
	return there, nil
}

// recallFurther is what the further interfaces' own marks say of them.
func (v *verifier) recallFurther(r Request, mark Mark, hostVeth string) ([]Further, error) {
	var out []Further
	for number := 1; number <= mark.Further; number++ {
		for _, name := range furtherHostVeths([]string{hostVeth}, r.PodNamespace, r.PodName, number) {
			l, err := v.link(Host, name)
			if err != nil {
				return nil, fmt.Errorf("look at link %s: %w", name, err)
			}
			what := fmt.Sprintf("host veth %s of %s with the sandbox's mark", name, FurtherIfName(number))
			if l == nil {
				return nil, &Difference{what, missing}
			}
			m, err := ParseMark(l.Attrs().Alias)
			if err != nil || !m.Is(r.Owner) || m.Number != number {
				return nil, &Difference{what, fmt.Sprintf("is marked %q", l.Attrs().Alias)}
			}
			out = append(out, Further{Address: m.Address})
		}
	}
	return out, nil
}
