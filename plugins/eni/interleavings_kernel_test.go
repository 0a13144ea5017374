//go:build kernel

package eni

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/plugins/nstest/model"
	"github.com/branchline-cni/branchline/rpc"
)

// soak is how many times as much as usual is tried: go run ./test/kernel -soak N.
func soak(t *testing.T) int {
	t.Helper()
	n, err := strconv.Atoi(os.Getenv("BRANCHLINE_SOAK"))
	if err != nil || n < 1 {
		t.Fatalf("BRANCHLINE_SOAK=%q is no number from 1 on: run these tests by go run ./test/kernel ./plugins/...", os.Getenv("BRANCHLINE_SOAK"))
	}
	return n
}

// interleaved is a node with its model beside it.
type interleaved struct {
	*node
	random *rand.Rand
	ipv6   bool // a cluster has one family
	model  *model.Node
	boxes  map[string]sandbox
	pods   map[string]*nstest.NS
	free   []*nstest.NS
	made   int
	steps  []string
}

// operations of the interleavings. Another verb is one more row.
var operations = []struct {
	name   string
	weight int
	do     func(*interleaved) error
}{
	{"ADD of a new sandbox", 10, (*interleaved).addNew},
	{"ADD once more", 2, (*interleaved).addAgain},
	{"DEL", 7, (*interleaved).end},
	{"CHECK", 2, (*interleaved).checkOne},
	{"GC", 2, (*interleaved).collect},
}

// newInterleaved is an IPv4 cluster's node for an odd seed, and an IPv6 cluster's for an even one.
func newInterleaved(t *testing.T, seed uint64) *interleaved {
	m := &interleaved{
		node: newNode(t), random: rand.New(rand.NewPCG(seed, 0)), ipv6: seed%2 == 0,
		boxes: map[string]sandbox{}, pods: map[string]*nstest.NS{},
	}
	m.model = model.New(m.before)
	m.agent.start(t)
	for range 6 {
		m.free = append(m.free, nstest.New(t))
	}
	return m
}

// run does random operations, ends what is left then, and says what was wrong first.
func (m *interleaved) run(steps int) error {
	total := 0
	for _, o := range operations {
		total += o.weight
	}
	for range steps {
		n := m.random.IntN(total)
		for _, o := range operations {
			if n -= o.weight; n < 0 {
				if err := m.step(func() error { return o.do(m) }); err != nil {
					return fmt.Errorf("%s: %w", o.name, err)
				}
				break
			}
		}
	}
	for _, s := range m.model.Sandboxes() {
		if err := m.step(func() error { return m.remove(s, m.boxes[s.ID]) }); err != nil {
			return fmt.Errorf("DEL at the end: %w", err)
		}
	}
	return nil
}

func (m *interleaved) step(do func() error) error {
	if err := do(); err != nil {
		return err
	}
	if wrong := m.model.Wrong(m.host.Snapshot(m.t)); wrong != nil {
		return fmt.Errorf("the node differs from the model (- missing, + left or foreign):\n%s", strings.Join(wrong, "\n"))
	}
	return nil
}

func (m *interleaved) say(format string, args ...any) {
	m.steps = append(m.steps, fmt.Sprintf(format, args...))
}

func pick[T any](m *interleaved, of ...T) T { return of[m.random.IntN(len(of))] }

func (m *interleaved) addNew() error {
	if len(m.free) == 0 {
		return m.end()
	}
	m.made++
	s := model.Sandbox{
		ID: fmt.Sprintf("sandbox-%d", m.made), Namespace: "shop", Pod: pick(m, "a", "b", "c"),
		Kind: pick(m, model.Regular, model.Strict, model.Standard),
	}
	prefix := "192.168.47."
	if m.ipv6 {
		prefix = "2001:db8:1::"
	}
	s.Address = netip.MustParseAddr(prefix + pick(m, "64", "65", "66"))
	if s.Kind == model.Regular {
		s.Table = pick(m, 0, 2, 3, 254)
		for _, last := range []string{"64", "67", "68"} {
			if a := netip.MustParseAddr(prefix + last); a != s.Address && m.random.IntN(4) == 0 {
				s.Further = append(s.Further, model.Further{Address: a, Table: pick(m, 0, 10101)})
			}
		}
	} else {
		s.VLAN = pick(m, 7, 8)
	}
	m.pods[s.ID], m.free = m.free[0], m.free[1:]
	m.boxes[s.ID] = newSandbox(s.ID, s.Namespace+"/"+s.Pod, m.pods[s.ID])
	return m.wire(s)
}

func (m *interleaved) addAgain() error {
	for _, s := range m.model.Sandboxes() {
		if m.model.Live(s.ID) && m.random.IntN(2) == 0 {
			return m.wire(s)
		}
	}
	return nil
}

func (m *interleaved) wire(s model.Sandbox) error {
	m.say("ADD %+v", s)
	m.agent.set(s.Namespace+"/"+s.Pod, m.reply(s))
	m.model.Add(s)
	if _, err := m.add("1.0.0", m.boxes[s.ID]); err != nil {
		return err
	}
	return m.inside(s)
}

// reply is the agent's answer; a branch ENI has another MAC for each VLAN id.
func (m *interleaved) reply(s model.Sandbox) *rpc.AddReply {
	if s.Kind == model.Regular {
		r := regularReply(s.Address.String(), uint32(s.Table))
		for i, f := range s.Further {
			r.Further = append(r.Further, &rpc.RegularInterface{Address: f.Address.String(), NetworkCard: uint32(i + 1), RouteTable: uint32(f.Table)})
		}
		return r
	}
	make := branchReply
	if m.ipv6 {
		make = branchReply6
	}
	r := make(uint32(s.VLAN), branchMACOf(s.VLAN), s.Address.String(), m.trunk())
	if s.Kind == model.Standard {
		return standard(r)
	}
	return r
}

func branchMACOf(vlan int) string { return fmt.Sprintf("06:20:0d:3c:5f:%02x", vlan) }

// inside looks at what the snapshot of the host doesn't tell: the ends of a sandbox's links.
func (m *interleaved) inside(s model.Sandbox) error {
	pod := m.pods[s.ID]
	have := pod.Snapshot(m.t)
	for _, want := range []string{"link eth0 veth  up=true", fmt.Sprintf("address eth0 %s/%d", s.Address, s.Address.BitLen())} {
		if !slices.Contains(have, want) {
			return fmt.Errorf("the pod of %s has no %q:\n%s", s.ID, want, strings.Join(have, "\n"))
		}
	}
	macs := []string{pod.Link(m.t, "eth0").Attrs().HardwareAddr.String()}
	for i, f := range s.Further {
		name := fmt.Sprint("mNicIf", i+1)
		if want := fmt.Sprintf("address %s %s/%d", name, f.Address, f.Address.BitLen()); !slices.Contains(have, want) {
			return fmt.Errorf("the pod of %s has no %q:\n%s", s.ID, want, strings.Join(have, "\n"))
		}
		macs = append(macs, pod.Link(m.t, name).Attrs().HardwareAddr.String())
	}
	m.model.Wired(s.ID, macs...)
	if s.VLAN == 0 {
		return nil
	}
	l, ok := m.host.Link(m.t, s.VLANLink()).(*netlink.Vlan)
	if !ok || l.VlanId != s.VLAN || l.ParentIndex != m.trunk() || l.HardwareAddr.String() != branchMACOf(s.VLAN) {
		return fmt.Errorf("VLAN link of %s: %+v", s.ID, l)
	}
	return nil
}

// end ends a sandbox in one of the ways in which runtimes do.
func (m *interleaved) end() error {
	all := m.model.Sandboxes()
	if len(all) == 0 {
		return nil
	}
	s := pick(m, all...)
	box := m.boxes[s.ID]
	switch m.random.IntN(5) {
	case 0:
		box.netns = ""
	case 1:
		box.args = "none"
	case 2:
		m.say("the runtime loses its results for the next DEL")
		kept := m.cache
		m.forget()
		defer func() { m.cache = kept }()
	}
	return m.remove(s, box)
}

func (m *interleaved) remove(s model.Sandbox, as sandbox) error {
	for again := true; again; again = m.random.IntN(4) == 0 { // DEL may come any number of times
		m.say("DEL %s: netns %q, args %q", s.ID, as.netns, as.args)
		if err := m.del(as); err != nil {
			return err
		}
	}
	m.ended(s)
	return nil
}

func (m *interleaved) ended(s model.Sandbox) {
	m.model.Remove(s.ID)
	m.free = append(m.free, m.pods[s.ID])
	delete(m.pods, s.ID)
	delete(m.boxes, s.ID)
}

// checkOne: a live sandbox is as it was wired. What CHECK says of the others is not asked, but it changes nothing.
func (m *interleaved) checkOne() error {
	all := m.model.Sandboxes()
	if len(all) == 0 {
		return nil
	}
	s := pick(m, all...)
	m.say("CHECK %s", s.ID)
	if err := m.check(pick(m, "0.4.0", "1.1.0"), m.boxes[s.ID]); err != nil && m.model.Live(s.ID) {
		return fmt.Errorf("%s is as it was wired: %w", s.ID, err)
	}
	return nil
}

// collect is a GC by a runtime that has forgotten some of the sandboxes.
func (m *interleaved) collect() error {
	var valid []sandbox
	var gone []model.Sandbox
	for _, s := range m.model.Sandboxes() {
		if m.random.IntN(4) == 0 {
			gone = append(gone, s)
		} else {
			valid = append(valid, m.boxes[s.ID])
		}
	}
	m.say("GC of all but %v", valid)
	if err := m.gc(valid...); err != nil {
		return err
	}
	for _, s := range gone {
		m.ended(s)
	}
	return nil
}

// TestP1RandomInterleavingsOfPodsThatShareNamesVLANsAndAddresses has late DELs of old sandboxes, too.
func TestP1RandomInterleavingsOfPodsThatShareNamesVLANsAndAddresses(t *testing.T) {
	for seed := range uint64(2 * soak(t)) {
		t.Run(fmt.Sprint("seed ", seed+1), func(t *testing.T) {
			t.Parallel()
			m := newInterleaved(t, seed+1)
			if err := m.run(60); err != nil {
				t.Fatalf("%v\nafter:\n%s", err, strings.Join(m.steps, "\n"))
			}
		})
	}
}
