//go:build kernel

package eni

import (
	"slices"
	"strings"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// TestP1ReplacedPodsAddressRuleGoesThoughItsResultIsLost: the mark of the older sandbox's link, which the newer one's
// takes the name of, is the last that knows the older one's address. Found by the interleavings.
func TestP1ReplacedPodsAddressRuleGoesThoughItsResultIsLost(t *testing.T) {
	for name, addresses := range map[string][2]string{
		"IPv4": {regularIP, "192.168.10.78"}, "IPv6": {regularIP6, "2001:db8::78"},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			older, newer := newSandbox("sandbox-1", goldenPod, nstest.New(t)), newSandbox("sandbox-2", goldenPod, nstest.New(t))
			other := newSandbox("sandbox-3", "shop/other", nstest.New(t))
			n.agent.set(goldenPod, regularReply(addresses[1], 2))
			n.mustAdd(newer)
			alone := n.host.Snapshot(t)
			n.mustDel(newer)

			n.agent.set(goldenPod, regularReply(addresses[0], 3))
			n.mustAdd(older)
			n.agent.set(goldenPod, regularReply(addresses[1], 2))
			n.mustAdd(newer)
			n.forget()
			n.mustDel(older)
			if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
				t.Errorf("after the older sandbox's DEL:\n%s", difference(alone, after))
			}
			n.mustDel(newer)
			n.wantClean()

			// The address is another pod's by now: its rule stays.
			n.agent.set("shop/other", regularReply(addresses[0], 3))
			n.mustAdd(other)
			alone = n.host.Snapshot(t)
			n.mustDel(other)
			n.agent.set(goldenPod, regularReply(addresses[0], 3))
			n.mustAdd(older)
			n.mustAdd(other)
			n.agent.set(goldenPod, regularReply(addresses[1], 2))
			n.mustAdd(newer)
			n.mustDel(older)
			n.mustDel(newer)
			if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
				t.Errorf("beside the address's next pod:\n%s", difference(alone, after))
			}
			n.mustDel(other)
			n.wantClean()
		})
	}
}

// TestP1AnOlderSandboxesAddressRuleGoesWithTheADDThatNeedsNone: what the address's next pod sends would leave by the older one's
// ENI until that one's DEL comes.
func TestP1AnOlderSandboxesAddressRuleGoesWithTheADDThatNeedsNone(t *testing.T) {
	for name, address := range map[string]string{"IPv4": regularIP, "IPv6": regularIP6} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.agent.start(t)
			older, newer := newSandbox("sandbox-1", goldenPod, nstest.New(t)), newSandbox("sandbox-2", "shop/other", nstest.New(t))
			n.agent.set(goldenPod, regularReply(address, 3))
			n.agent.set("shop/other", regularReply(address, 0)) // the agent's marks choose the ENI
			n.mustAdd(newer)
			alone := n.host.Snapshot(t)
			n.mustDel(newer)
			isRule := func(line string) bool { return strings.HasPrefix(line, "rule ") }
			rules := func(lines []string) []string {
				return slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return !isRule(l) })
			}

			n.mustAdd(older)
			n.mustAdd(newer)
			if now := rules(n.host.Snapshot(t)); !slices.Equal(rules(alone), now) {
				t.Errorf("with the address given on:\n%s", difference(rules(alone), now))
			}
			n.mustDel(older)
			if after := n.host.Snapshot(t); !slices.Equal(alone, after) {
				t.Errorf("after the older sandbox's DEL:\n%s", difference(alone, after))
			}
			n.mustDel(newer)
			n.wantClean()
		})
	}
}
