package datapath

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// wired is a sandbox in a sequence.
type wired struct {
	request Request
	plan    Plan
	live    bool // not: a newer one has its pod, VLAN id or address, and its end is still to come
}

func (w *wired) shares(o *wired) bool {
	a, b := w.request, o.request
	for _, address := range w.addresses() {
		if slices.Contains(o.addresses(), address) {
			return true
		}
	}
	return a.PodName == b.PodName || a.Branch != nil && b.Branch != nil && a.Branch.VLAN == b.Branch.VLAN
}

func (w *wired) addresses() []netip.Addr {
	list := []netip.Addr{w.request.Address}
	for _, f := range w.request.Further {
		list = append(list, f.Address)
	}
	return list
}

// collect does what Collect does.
func (m *model) collect(valid []Owner) {
	f := Found{Names: map[string]bool{}, Routed: map[netip.Addr][]string{}, Rules: slices.Collect(maps.Values(m.rules))}
	for name, alias := range m.links {
		mark, _ := ParseMark(alias)
		f.Names[name] = true
		f.Links = append(f.Links, FoundLink{Name: name, Mark: mark})
	}
	for route, link := range m.routes {
		number, dst, _ := strings.Cut(route, " ")
		table, _ := strconv.Atoi(number)
		if p := netip.MustParsePrefix(dst); p.IsSingleIP() && !ofStrictPods(table) {
			f.Routed[p.Addr()] = append(f.Routed[p.Addr()], link)
		}
	}
	for _, s := range Garbage(f, Valid(valid)) {
		m.do(s)
	}
}

// whole says what a sandbox lacks, or what leads elsewhere of what is for it.
func (m *model) whole(w *wired) error {
	alone := newModel()
	alone.apply(w.plan)
	for name, mark := range alone.links {
		if m.links[name] != mark {
			return fmt.Errorf("link %s is marked %q, want %q", name, m.links[name], mark)
		}
	}
	for rule := range alone.rules {
		if _, ok := m.rules[rule]; !ok {
			return fmt.Errorf("no %s", rule)
		}
	}
	for route, link := range alone.routes {
		if m.routes[route] != link {
			return fmt.Errorf("route %s is by %q, want %s", route, m.routes[route], link)
		}
	}
	for _, table := range []int{LocalPodsTable, StrictPodsTable} {
		for _, address := range w.addresses() {
			route := fmt.Sprint(table, " ", single(address))
			if alone.routes[route] != m.routes[route] {
				return fmt.Errorf("route %s leads to %q, which is not its own", route, m.routes[route])
			}
		}
	}
	return nil
}

// TestP1InAnySequenceEachLiveSandboxKeepsItsOwn is TestP1RandomInterleavingsOfPodsThatShareNamesVLANsAndAddresses of plugins/eni
// without a kernel: the decisions alone, in many more sequences.
func TestP1InAnySequenceEachLiveSandboxKeepsItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		ipv6 := rapid.Bool().Draw(t, "IPv6")
		m := newModel()
		var boxes []*wired
		end := func(i int) {
			m.teardown(boxes[i].request, boxes[i].plan)
			boxes = slices.Delete(boxes, i, i+1)
		}
		for n := range rapid.IntRange(1, 12).Draw(t, "steps") {
			op := rapid.SampledFrom([]string{"ADD", "ADD", "ADD again", "DEL", "DEL", "GC"}).Draw(t, "op")
			if len(boxes) == 0 {
				op = "ADD"
			}
			i := rapid.IntRange(0, max(0, len(boxes)-1)).Draw(t, "which")
			switch op {
			case "ADD":
				r := genRequest(t, fmt.Sprint("sandbox-", n), ipv6)
				w := &wired{r, mustPlan(t, r), true}
				for _, o := range boxes {
					o.live = o.live && !w.shares(o)
				}
				boxes = append(boxes, w)
				w.live = m.apply(w.plan) // refused where another pod has its name on the host; its end comes all the same
			case "ADD again":
				if boxes[i].live {
					m.apply(boxes[i].plan)
				}
			case "DEL":
				end(i)
			case "GC": // the runtime has forgotten one
				boxes = slices.Delete(boxes, i, i+1)
				var valid []Owner
				for _, w := range boxes {
					valid = append(valid, w.request.Owner)
				}
				m.collect(valid)
			}
			for _, w := range boxes {
				if !w.live {
					continue
				}
				if err := m.whole(w); err != nil {
					t.Fatalf("after %s, %s: %v", op, w.request.Owner, err)
				}
			}
		}
		for len(boxes) > 0 {
			end(0)
		}
		if m.String() != newModel().String() {
			t.Fatalf("left: %s", m)
		}
	})
}
