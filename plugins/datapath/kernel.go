package datapath

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// kernel does steps by netlink: one socket per namespace, no dumps, and look-ups only of what could not be made.
type kernel struct {
	host, pod *socket // pod is nil in a teardown
	podNS     int
	owner     Owner
	index     map[Side]map[string]int // of the links that we made or looked at
	until     time.Time
	queue     []queued // requests of steps that can go together with the next ones
	doomed    []doomed // links that go together, after what is queued
}

// queued is a step whose requests are still to be sent.
type queued struct {
	step     Step
	side     Side
	requests []*request
	// fine are errors that mean success, by request.
	fine []unix.Errno
}

// openKernel opens a socket in this process's namespace and, with podNS >= 0, one in the pod's.
func openKernel(ctx context.Context, owner Owner, podNS int) (*kernel, error) {
	k := &kernel{owner: owner, podNS: podNS, index: map[Side]map[string]int{Host: {}, Pod: {}}}
	var err error
	if k.host, err = openSocket(); err != nil {
		return nil, fmt.Errorf("open a netlink socket on the host: %w", err)
	}
	if podNS >= 0 {
		if k.pod, err = openSocketAt(podNS); err != nil {
			k.close()
			return nil, fmt.Errorf("open a netlink socket in the pod's network namespace: %w", err)
		}
	}
	if err := k.deadline(ctx); err != nil {
		k.close()
		return nil, err
	}
	return k, nil
}

// noDeadline is how long an answer may take when the context has none.
const noDeadline = time.Minute

// deadline keeps a single netlink answer from outliving the context.
func (k *kernel) deadline(ctx context.Context) error {
	end, ok := ctx.Deadline()
	if !ok {
		end = time.Now().Add(noDeadline)
	}
	k.until = end
	for _, s := range []*socket{k.host, k.pod} {
		if s == nil {
			continue
		}
		if err := s.timeout(k.left()); err != nil {
			return fmt.Errorf("set the netlink socket's timeout: %w", err)
		}
	}
	return nil
}

func (k *kernel) left() time.Duration { return max(time.Until(k.until), time.Millisecond) }

func (k *kernel) close() {
	k.host.close()
	k.pod.close()
}

func (k *kernel) socket(s Side) *socket {
	if s == Pod {
		return k.pod
	}
	return k.host
}

// do makes one step true, or queues it: flush makes it true then.
func (k *kernel) do(step Step) error {
	var err error
	switch s := step.(type) {
	case AddVLAN:
		err = k.addVLAN(s)
	case AddVeth:
		err = k.addVeth(s)
	case SetSysctl:
		err = writeSysctl(s)
	case DisableIPv6:
		err = disableIPv6(k.podNS)
	case AddAddress:
		k.later(step, s.Side, addressRequest(s, k.index[s.Side][s.Link]))
	case AddNeighbour:
		k.later(step, s.Side, neighbourRequest(s, k.index[s.Side][s.Link]))
	case AddRoute:
		k.later(step, s.Side, routeRequest(s, k.index[s.Side][s.Link]))
	case AddRule:
		// Whatever rule has the same selector goes: an older sandbox's, for another table, would win.
		stale := s.Rule
		stale.Table = 0
		k.queue = append(k.queue, queued{step, s.Side, []*request{deleteRuleRequest(stale), addRuleRequest(s.Rule)}, []unix.Errno{unix.ENOENT, unix.EEXIST}})
	case DeleteRule:
		k.queue = append(k.queue, queued{step, s.Side, []*request{deleteRuleRequest(s.Rule)}, []unix.Errno{unix.ENOENT}})
	case DeleteRoute:
		k.queue = append(k.queue, queued{step, Host, []*request{deleteRouteRequest(s)}, []unix.Errno{unix.ESRCH}})
	case AwaitAddress:
		if err := k.flush(); err != nil {
			return err
		}
		err = k.awaitAddress(s)
	case DeleteLink:
		err = k.doom(s)
	default:
		err = fmt.Errorf("no such step: %T", step)
	}
	return stepError(step, err)
}

func (k *kernel) later(step Step, side Side, r *request) {
	k.queue = append(k.queue, queued{step: step, side: side, requests: []*request{r}})
}

// flush sends what is queued, to each side at once, and joins the errors of all steps.
func (k *kernel) flush() error {
	queue := k.queue
	k.queue = nil
	var errs []error
	for _, side := range []Side{Host, Pod} {
		var requests []*request
		for _, q := range queue {
			if q.side == side {
				requests = append(requests, q.requests...)
			}
		}
		if err := k.socket(side).exchange(requests...); err != nil {
			return errors.Join(err, k.deleteDoomed())
		}
	}
	for _, q := range queue {
		errs = append(errs, stepError(q.step, k.outcome(q)))
	}
	// What went wrong with a rule doesn't keep the links, which are seen and counted, on the node.
	return errors.Join(append(errs, k.deleteDoomed())...)
}

// outcome is what became of a step. Of rules that are to go the kernel takes one at a time.
func (k *kernel) outcome(q queued) error {
	for i, r := range q.requests {
		if r.err != nil && (i >= len(q.fine) || !errors.Is(r.err, q.fine[i])) {
			return r.err
		}
	}
	if q.fine == nil || q.requests[0].err != nil {
		return nil // there was no rule to delete
	}
	switch s := q.step.(type) {
	case AddRule:
		stale := s.Rule
		stale.Table = 0
		if err := k.deleteRules(stale); err != nil {
			return fmt.Errorf("%s: %w", DeleteRule{stale}, err)
		}
		return k.one(s.Side, addRuleRequest(s.Rule))
	case DeleteRule:
		return k.deleteRules(s.Rule)
	}
	return nil
}

// one sends a single request.
func (k *kernel) one(side Side, r *request) error {
	if err := k.socket(side).exchange(r); err != nil {
		return err
	}
	return r.err
}

// maxStaleRules bounds the loop should the kernel say "deleted" for ever.
const maxStaleRules = 64

// deleteRules deletes every rule with the selector, of any table when r names none.
func (k *kernel) deleteRules(r Rule) error {
	for range maxStaleRules {
		err := k.one(r.Side, deleteRuleRequest(r))
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("there are still more after %d were deleted", maxStaleRules)
}

func stepError(step Step, err error) error {
	var done *StepError
	if err == nil || errors.As(err, &done) {
		return err
	}
	return &StepError{Step: step, Err: explain(step, err)}
}

// StepError says which step failed.
type StepError struct {
	Step Step
	Err  error
}

func (e *StepError) Error() string { return e.Step.String() + ": " + e.Err.Error() }
func (e *StepError) Unwrap() error { return e.Err }

// explain adds what an errno means here, where that isn't plain.
func explain(step Step, err error) error {
	switch step.(type) {
	case AddVLAN:
		switch {
		case errors.Is(err, unix.EOPNOTSUPP):
			return fmt.Errorf("%w: this kernel has no 802.1Q (module 8021q), branch ENIs can't be wired on this node", err)
		case errors.Is(err, unix.ENODEV):
			return fmt.Errorf("%w: the trunk's link is not there", err)
		case errors.Is(err, unix.EEXIST):
			return fmt.Errorf("%w: the trunk has a link for this VLAN id under another name", err)
		case errors.Is(err, unix.ENETDOWN):
			return fmt.Errorf("%w: the trunk's link is down", err)
		}
	case AddVeth:
		if errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("%w: the sandbox has an interface of this name already", err)
		}
	}
	return err
}

// awaitAddress waits for the kernel's own route to the address, which is made some time after the address. The event of
// the address is of no use: it comes shortly before the route.
func (k *kernel) awaitAddress(s AwaitAddress) error {
	local := func() (bool, error) {
		route, err := k.fibMatch(Pod, s.Address)
		return route.kind == unix.RTN_LOCAL, err
	}
	return k.await(k.podNS, unix.RTNLGRP_IPV6_ROUTE, k.left(), local)
}

// await waits until something is so, and looks again at each event of a group in a namespace (this process's where it is negative).
// It fails with context.DeadlineExceeded.
func (k *kernel) await(netns int, group uint32, most time.Duration, so func() (bool, error)) error {
	if ready, err := so(); ready || err != nil {
		return err
	}
	events, err := subscribe(netns, group)
	if err != nil {
		return err
	}
	defer events.close()
	for end := time.Now().Add(most); ; {
		if ready, err := so(); ready || err != nil {
			return err
		}
		left := time.Until(end)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		if err := events.timeout(left); err != nil {
			return err
		}
		// Where more was to be heard than the socket holds, looking is as good.
		if err := events.event(); err != nil && !errors.Is(err, unix.ENOBUFS) {
			return err
		}
	}
}

// fibRoute is the route that a packet to some address would take.
type fibRoute struct {
	kind         byte // RTN_*
	table, index int
}

// fibMatch looks up the route to an address; the zero route when there is none.
func (k *kernel) fibMatch(side Side, a netip.Addr) (fibRoute, error) {
	r := fibMatchRequest(a)
	err := k.one(side, r)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.ESRCH):
		return fibRoute{}, nil
	case err != nil:
		return fibRoute{}, fmt.Errorf("look up the route to %s: %w", a, err)
	}
	return parseRoute(r.reply), nil
}

func (s SetSysctl) path() string {
	family := "ipv4"
	if s.IPv6 {
		family = "ipv6"
	}
	return "/proc/sys/net/" + family + "/conf/" + s.Link + "/" + s.Key
}

func writeSysctl(s SetSysctl) error {
	err := writeSetting(s.path(), s.Value)
	if s.IPv6 && errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeSetting is os.WriteFile without the runtime's poller.
func writeSetting(path, value string) error {
	fd, err := unix.Open(path, unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	if err := again(func() error { _, err := unix.Write(fd, []byte(value)); return err }); err != nil {
		return &fs.PathError{Op: "write", Path: path, Err: err}
	}
	return nil
}
