//go:build kernel

package eni

import (
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/datapath"
	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// kinds are the ways in which a sandbox can be wired. Those of IPv6 make the same calls, but for a strict pod's, and the
// others' are for soaking.
func kinds(trunk, soak int) map[string]*rpc.AddReply {
	all := map[string]*rpc.AddReply{
		"regular":        regularReply(regularIP, 2),
		"strict":         branchReply(7, branchMAC, branchIP, trunk),
		"strict of IPv6": branchReply6(7, branchMAC, branchIP6, trunk),
		"standard":       standard(branchReply(7, branchMAC, branchIP, trunk)),
		"several":        several(regularReply(regularIP, 0), "192.168.64.77"),
	}
	if soak > 1 {
		all["regular of IPv6"] = regularReply(regularIP6, 2)
		all["several of IPv6"] = several(regularReply(regularIP6, 0), "2001:db8:64::77")
		all["standard of IPv6"] = standard(branchReply6(7, branchMAC, branchIP6, trunk))
	}
	return all
}

// crashing is a node with a sandbox that an executable dies at, and those that come after it with the same name, VLAN id
// and address.
type crashing struct {
	*node
	first, second, neighbour sandbox
	pods                     map[sandbox]*nstest.NS
	alone, wired             map[sandbox][]string // the host's and the pod's snapshots with this sandbox alone
}

func newCrashing(t *testing.T, kind string) *crashing {
	t.Helper()
	c := &crashing{
		node: newNode(t), pods: map[sandbox]*nstest.NS{}, alone: map[sandbox][]string{}, wired: map[sandbox][]string{},
	}
	c.agent.start(t)
	reply := kinds(c.trunk(), soak(t))[kind]
	for _, b := range []struct {
		s       *sandbox
		id, pod string
	}{{&c.first, "sandbox-1", goldenPod}, {&c.second, "sandbox-2", goldenPod}, {&c.neighbour, "sandbox-3", "shop/next"}} {
		pod := nstest.New(t)
		s := newSandbox(b.id, b.pod, pod)
		*b.s, c.pods[s] = s, pod
		c.agent.set(b.pod, reply)
		c.mustAdd(s)
		c.alone[s], c.wired[s] = c.host.Snapshot(t), pod.Snapshot(t)
		c.mustDel(s)
		c.wantNothing("before anything is harmed")
	}
	return c
}

// wantNothing: neither the node nor the pods have anything of a sandbox.
func (c *crashing) wantNothing(when string) {
	c.t.Helper()
	if after := c.host.Snapshot(c.t); !slices.Equal(c.before, after) {
		c.t.Errorf("%s: left behind on the host:\n%s", when, difference(c.before, after))
	}
	for s, pod := range c.pods {
		for _, name := range []string{s.ifName, "mNicIf1", "mNicIf2"} {
			if pod.Link(c.t, name) != nil {
				c.t.Errorf("%s: the pod of %s still has its %s", when, s.id, name)
			}
		}
		c.dropRules(pod)
	}
}

// dropRules takes away what would go with the pod's namespace, which the next sandbox is given here: an ADD that meets such a
// rule makes more calls than one that doesn't.
func (c *crashing) dropRules(pod *nstest.NS) {
	c.t.Helper()
	for _, family := range []int{unix.AF_INET, unix.AF_INET6} {
		rules, err := pod.Handle.RuleList(family)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, r := range rules {
			if r.Priority == datapath.PriorityFromFurther {
				if err := pod.Handle.RuleDel(&r); err != nil {
					c.t.Fatal(err)
				}
			}
		}
	}
}

// wantAlone: the node has this sandbox and nothing else, and the sandbox is whole.
func (c *crashing) wantAlone(when string, s sandbox) {
	c.t.Helper()
	if after := c.host.Snapshot(c.t); !slices.Equal(c.alone[s], after) {
		c.t.Errorf("%s: with %s alone on the host:\n%s", when, s.id, difference(c.alone[s], after))
	}
	if after := c.pods[s].Snapshot(c.t); !slices.Equal(c.wired[s], after) {
		c.t.Errorf("%s: in the pod of %s:\n%s", when, s.id, difference(c.wired[s], after))
	}
}

// wantUp: no link of the node is down, whatever has happened to its maker.
func (c *crashing) wantUp(when string) {
	c.t.Helper()
	for _, line := range c.host.Snapshot(c.t) {
		if strings.HasPrefix(line, "link ") && strings.HasSuffix(line, "up=false") {
			c.t.Errorf("%s: %s", when, line)
		}
	}
}

type repair struct {
	name string
	do   func(c *crashing, when string)
}

// repairs are the calls that may come after a verb that was killed, or has failed. A runtime's DEL of a sandbox whose ADD
// has failed always comes, be it late. Each leaves nothing. Another verb that repairs is one more row;
// those that know least are apart, so that the few that meet one send are different ones.
var repairs = []repair{
	{"the same ADD", func(c *crashing, when string) {
		c.mustAdd(c.first)
		c.wantAlone(when, c.first)
		if err := c.check("1.0.0", c.first); err != nil {
			c.t.Errorf("%s, and CHECK: %v", when, err)
		}
		c.mustDel(c.first)
	}},
	{"GC that has the sandbox for a valid one, and DEL", func(c *crashing, when string) {
		if err := c.gc(c.first); err != nil {
			c.t.Errorf("%s: %v", when, err)
		}
		c.wantUp(when)
		c.mustDel(c.first)
	}},
	{"ADD of the pod's next sandbox", func(c *crashing, when string) {
		c.mustAdd(c.second)
		c.wantAlone(when, c.second)
		c.mustDel(c.first)
		c.wantAlone(when+", and its DEL", c.second)
		c.mustDel(c.second)
	}},
	{"GC", func(c *crashing, when string) {
		if err := c.gc(); err != nil {
			c.t.Errorf("%s: %v", when, err)
		}
	}},
	{"DEL", func(c *crashing, _ string) { c.mustDel(c.first) }},
	{"DEL, the result being lost", func(c *crashing, _ string) {
		c.forget()
		c.mustDel(c.first)
	}},
	{"ADD of the next pod", func(c *crashing, when string) {
		c.mustAdd(c.neighbour)
		c.wantUp(when)
		c.mustDel(c.first)
		c.wantAlone(when+", and its DEL", c.neighbour)
		c.mustDel(c.neighbour)
	}},
}

// repair has the i-th of the repairs done.
func (c *crashing) repair(i int, when string) {
	c.t.Helper()
	c.wantUp(when)
	r := repairs[i%len(repairs)]
	when += ", then " + r.name
	r.do(c, when)
	c.wantNothing(when)
}

// tidy ends the sandbox, wherever it is.
func (c *crashing) tidy(when string) {
	c.t.Helper()
	c.mustDel(c.first)
	c.wantNothing(when)
}

// part is a verb with one kind of harm.
type part struct {
	name string
	of   func(kind string) bool // which kinds it is for when not soaking; nil: all
	do   func(c *crashing, kind string)
}

func of(kinds ...string) func(string) bool {
	return func(kind string) bool { return slices.Contains(kinds, kind) }
}

var parts = []part{
	{"ADD is killed", nil, func(c *crashing, kind string) {
		atEachSend(c.t, killed, c.rounds(kind), func(x *harmed) { _ = c.runADD(x) }, c.repair, c.tidy)
	}},
	{"DEL is killed", nil, func(c *crashing, kind string) {
		atEachSend(c.t, killed, c.rounds(kind), func(x *harmed) { _ = c.runDEL(x) }, c.repair, c.tidy)
	}},
	{"GC is killed", of("strict"), func(c *crashing, _ string) {
		gc := func(x *harmed) {
			c.mustAdd(c.first)
			_ = x.run(c.node, func() error { return c.gc() })
		}
		atEachSend(c.t, killed, 1, gc, c.repair, c.tidy)
	}},
	// What lacks memory is an error with a code, and the undo leaves nothing.
	{"ADD fails", of("regular", "standard", "strict"), func(c *crashing, _ string) {
		var failed error
		atEachSend(c.t, failing(unix.ENOBUFS), 1, func(x *harmed) { failed = c.runADD(x) }, func(_ int, when string) {
			wantCode(c.t, failed, CodeWiring, goldenPod, "no buffer space")
			c.tidy(when)
		}, c.tidy)
	}},
	// A runtime repeats a DEL that has failed, and one that has not is over.
	{"DEL fails", of("regular", "standard", "strict"), func(c *crashing, _ string) {
		var failed error
		atEachSend(c.t, failing(unix.ENOBUFS), 1, func(x *harmed) { failed = c.runDEL(x) }, func(i int, when string) {
			wantCode(c.t, failed, CodeWiring, goldenPod, "no buffer space")
			c.repair(i, when)
		}, c.tidy)
	}},
	// What is interrupted is done again.
	{"ADD is interrupted", of("strict"), func(c *crashing, _ string) {
		var failed error
		atEachSend(c.t, failing(unix.EINTR), 1, func(x *harmed) { failed = c.runADD(x) }, func(_ int, when string) {
			if failed != nil {
				c.t.Errorf("%s: %v", when, failed)
			}
			c.wantAlone(when, c.first)
			c.mustDel(c.first)
			c.wantNothing(when + ", then DEL")
		}, c.tidy)
	}},
	{"DEL is interrupted", of("strict"), func(c *crashing, _ string) {
		var failed error
		atEachSend(c.t, failing(unix.EINTR), 1, func(x *harmed) { failed = c.runDEL(x) }, func(_ int, when string) {
			if failed != nil {
				c.t.Errorf("%s: %v", when, failed)
			}
			c.wantNothing(when)
		}, c.tidy)
	}},
}

func (c *crashing) runADD(x *harmed) error {
	return x.run(c.node, func() error { _, err := c.add("1.0.0", c.first); return err })
}

func (c *crashing) runDEL(x *harmed) error {
	c.mustAdd(c.first)
	return x.run(c.node, func() error { return c.del(c.first) })
}

// rounds is how many of the repairs meet each send, other ones each: more of them for a strict pod, which has most that
// can be left, and all when soaking.
func (c *crashing) rounds(kind string) int {
	switch {
	case soak(c.t) > 1:
		return len(repairs)
	case kind == "strict":
		return 2
	}
	return 1
}

// TestAtAnyNetlinkCallAKillIsRepairedAndAFailureIsSaid harms the executable as it ships at each of its sends to netlink, and
// when it has made its last and not heard of it.
func TestAtAnyNetlinkCallAKillIsRepairedAndAFailureIsSaid(t *testing.T) {
	for kind := range kinds(0, soak(t)) {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			c := newCrashing(t, kind)
			for _, p := range parts {
				if p.of != nil && !p.of(kind) && soak(t) == 1 {
					continue
				}
				t.Run(p.name, func(t *testing.T) {
					c.t = t
					c.forget() // the results of the part before, which end with it
					p.do(c, kind)
				})
			}
		})
	}
}
