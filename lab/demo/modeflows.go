package demo

import (
	"errors"
	"fmt"
	"maps"
	"strconv"
	"strings"

	"github.com/branchline-cni/branchline/lab/vpc"
)

// try is one of a flow's ports.
type try struct {
	flow
	port uint16
	side refusal
}

// refusal says where the groups refuse a try, if they apply at all.
type refusal int

const (
	refusedNowhere refusal = iota
	refusedOut
	refusedIn
)

// tries are one for each port; of what gets nowhere groups say nothing, so one is enough.
func (f flow) tries(w way) (out []try) {
	if w.lost {
		f.ports.notOut, f.ports.notIn = 0, 0
	}
	for side, port := range []uint16{f.ports.allowed, f.ports.notOut, f.ports.notIn} {
		if port != 0 {
			out = append(out, try{f, port, refusal(side)})
		}
	}
	return out
}

func (t try) String() string {
	kind := "tcp"
	if t.query {
		kind = "udp"
	}
	return fmt.Sprintf("%s > %s %s/%d", t.from, t.to, kind, t.port)
}

// connects is whether a try gets through by that way.
func (t try) connects(w way) bool {
	refused := t.side == refusedOut && w.out != nobody || t.side == refusedIn && w.in != nobody
	return !refused && !t.unanswered && !w.lost
}

// eniOf is who owns an address in EC2.
type eniOf struct {
	id     string
	branch bool
	groups []string
}

// packets is what was seen of a round of tries.
type packets struct {
	address   map[string]string // of actors
	eni       map[string]eniOf  // by address
	groups    map[string]string // the group's id, by the table's words
	connected map[try]bool
	records   []record
	drops     []vpc.Drop
}

// record is one of the VPC flow log's.
type record struct {
	eni, src, dst    string
	srcPort, dstPort uint16
	udp, accepted    bool
}

// parseRecords reads the flow log's default format, version 2.
func parseRecords(text string) (out []record, err error) {
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		if len(f) != 14 || f[0] != "2" {
			return nil, fmt.Errorf("read flow log: %q is no record of version 2", line)
		}
		src, err1 := strconv.ParseUint(f[5], 10, 16)
		dst, err2 := strconv.ParseUint(f[6], 10, 16)
		if err := errors.Join(err1, err2); err != nil {
			return nil, fmt.Errorf("read flow log: %q: %w", line, err)
		}
		out = append(out, record{f[2], f[3], f[4], uint16(src), uint16(dst), f[7] == "17", f[12] == "ACCEPT"})
	}
	return out, nil
}

// judge compares what was seen of a try with the way that the table gives it: whether it connected, which ENIs saw its
// packets and those of the answer, where they were let through and where refused, and whose groups the ENIs have.
func (p *packets) judge(t try, w way) error {
	src, dst := p.address[t.from], p.address[t.to]
	if src == "" || dst == "" {
		return fmt.Errorf("%s: an address is not known: %q, %q", t, src, dst)
	}
	if w.lost {
		return p.judgeLost(t)
	}
	var errs []error
	want, branch := map[string]bool{}, false // by ENI: whether it lets through
	refused := false
	for _, stage := range []struct {
		side    refusal
		words   string
		address string
	}{{refusedOut, w.out, src}, {refusedIn, w.in, dst}} {
		if stage.words == nobody || refused {
			continue
		}
		e, ok := p.eni[stage.address]
		group := p.groups[stage.words]
		if !ok || group == "" || len(e.groups) != 1 || e.groups[0] != group {
			errs = append(errs, fmt.Errorf("%s has %+v, want an ENI with %s groups: %q", stage.address, e, stage.words, group))
		}
		refused = t.side == stage.side
		want[e.id], branch = !refused, branch || e.branch
	}
	if t.side == refusedNowhere && branch != w.branch {
		errs = append(errs, fmt.Errorf("the ENIs on its way are branch ENIs: %t, want %t", branch, w.branch))
	}
	connects := t.connects(w)
	if got, tried := p.connected[t]; !tried || got != connects {
		errs = append(errs, fmt.Errorf("connected %t (tried %t), want %t", got, tried, connects))
	}
	there, back := map[string]bool{}, map[string]bool{}
	for _, r := range p.records {
		switch {
		case r.udp != t.query:
		case r.src == src && r.dst == dst && r.dstPort == t.port:
			errs = append(errs, add(there, r))
		case r.src == dst && r.dst == src && r.srcPort == t.port:
			errs = append(errs, add(back, r))
		}
	}
	if !maps.Equal(there, want) {
		errs = append(errs, fmt.Errorf("let through by ENI: %v, want %v", there, want))
	}
	if !connects {
		clear(want)
	}
	if !maps.Equal(back, want) {
		errs = append(errs, fmt.Errorf("the answer was let through by ENI: %v, want %v", back, want))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s (%s > %s): %w", t, src, dst, err)
	}
	return nil
}

// judgeLost wants a try to have failed because a packet or its answer left by an ENI that doesn't own its source: the
// caller's by the node's, or the node's by the pod's branch ENI.
func (p *packets) judgeLost(t try) error {
	caller, pod, node := p.address[t.caller], p.address[t.to], p.address[hostPod]
	if connected, tried := p.connected[t]; connected || !tried {
		return fmt.Errorf("%s: connected %t (tried %t), want it lost", t, connected, tried)
	}
	for _, d := range p.drops {
		from, to := d.Src.Addr().String(), d.Dst.Addr().String()
		there := d.ENI == p.eni[node].id && from == caller && to == pod
		back := d.ENI == p.eni[pod].id && from == node && to == caller && d.Src.Port() == t.nodePort
		if d.Reason == vpc.SourceDestCheck && (there || back) {
			return nil
		}
	}
	return fmt.Errorf("%s: not connected, and no packet of %s to %s was dropped by the check of sources", t, caller, pod)
}

func add(seen map[string]bool, r record) error {
	if was, ok := seen[r.eni]; ok && was != r.accepted {
		return fmt.Errorf("%s both let it through and refused it", r.eni)
	}
	seen[r.eni] = r.accepted
	return nil
}

// tryScript is a shell script that makes all tries at once and prints a line for each. dial is where a try goes to.
func tryScript(tries []try, dial func(try) (host string, port uint16)) string {
	var b strings.Builder
	// With -e, nc runs a program once it is connected: so its end says whether it was.
	b.WriteString("say() { if \"$@\" >/dev/null 2>&1; then echo \"$n yes\"; else echo \"$n no\"; fi; }\n")
	for n, t := range tries {
		host, port := dial(t)
		switch {
		case t.query && host == "":
			fmt.Fprintf(&b, "n=%d say timeout 10 busybox nslookup -type=a kubernetes.default.svc.cluster.local &\n", n)
		case t.query:
			fmt.Fprintf(&b, "n=%d say timeout 10 busybox nslookup -type=a db.lab.internal %s &\n", n, host)
		default:
			fmt.Fprintf(&b, "n=%d say timeout 10 busybox nc -w 8 %s %d -e true &\n", n, host, port)
		}
	}
	return b.String() + "wait\n"
}

// readTries reads what tryScript printed.
func readTries(tries []try, printed string) (map[try]bool, error) {
	out := map[try]bool{}
	for line := range strings.Lines(printed) {
		n, answer, _ := strings.Cut(strings.TrimSpace(line), " ")
		i, err := strconv.Atoi(n)
		if err != nil || i < 0 || i >= len(tries) || answer != "yes" && answer != "no" {
			return nil, fmt.Errorf("read what the tries came to: %q", line)
		}
		out[tries[i]] = answer == "yes"
	}
	if len(out) != len(tries) {
		return nil, fmt.Errorf("read what the tries came to: %d of %d", len(out), len(tries))
	}
	return out, nil
}
