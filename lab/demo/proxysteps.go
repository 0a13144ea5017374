package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/kube"
)

// secondaryOnly leaves the node's agent no free address but those of its secondary ENI, so that the next regular pod gets one
// of these: somebody else takes the primary ENI's away while the agent may not ask for others.
func (m *modesWalk) secondaryOnly(ctx context.Context) error {
	list := []string{"aws", "ec2", "describe-network-interfaces", "--network-interface-ids", m.node.ENIID, "--output", "text",
		"--query", "NetworkInterfaces[].PrivateIpAddresses[?Primary==`false`].PrivateIpAddress"}
	o, err := m.Do(ctx, m.Local, list...)
	if err != nil {
		return err
	}
	free := slices.DeleteFunc(strings.Fields(o.Stdout), func(a string) bool { return a == m.seen.address[regularPod] })
	argv := []string{"aws", "ec2", "unassign-private-ip-addresses", "--network-interface-id", m.node.ENIID, "--private-ip-addresses"}
	if _, err := m.Do(ctx, m.Local, append(argv, free...)...); err != nil {
		return err
	}
	// A link's event has the agent look at its ENIs now, and not within a minute.
	for _, alias := range []string{"walk", ""} {
		if _, err := m.Do(ctx, m.inside(m.node), "ip", "link", "set", "dev", "eth0", "alias", alias); err != nil {
			return err
		}
	}
	for i, a := range free {
		free[i] = strconv.Quote(a + "/32")
	}
	_, err = m.Await(ctx, 90*time.Second, "the agent knows that the primary ENI's free addresses are gone", both(contains(strconv.Quote(m.node.ENIID)), lacks(free...)),
		m.inside(m.node), m.lab.Tool("busybox"), "wget", "-q", "-O", "-", "http://127.0.0.1:61679/v1/enis")
	return err
}

// secondaryAttached waits for the ENI that the agent keeps ahead.
func (m *modesWalk) secondaryAttached(ctx context.Context) error {
	_, err := m.Await(ctx, time.Minute, "the agent has attached a secondary ENI, as the primary one's addresses are in use", equals("in-use"), m.Local,
		"aws", "ec2", "describe-network-interfaces", "--filters", "Name=description,Values=aws-K8S-"+m.node.ID, "--output", "text", "--query", "NetworkInterfaces[].Status")
	return err
}

// proxies has the node's kube-proxy run in each of its modes and plays the table of paths in each; then it is as it was.
func (m *modesWalk) proxies(ctx context.Context) error {
	if e := m.seen.eni[m.seen.address[secondaryPod]]; e.id == "" || e.id == m.node.ENIID || e.branch {
		return fmt.Errorf("pod %s has an address of %+v, want a secondary ENI's", secondaryPod, e)
	}
	m.Seen("one regular pod has an address of the primary ENI, another one of a secondary ENI")
	// The node has run in the first mode until now, and goes on in it.
	for _, mode := range append(kube.ProxyModes[1:], kube.ProxyModes[0]) {
		began := time.Now()
		if err := m.lab.SetProxyMode(ctx, m.node, mode); err != nil {
			return err
		}
		if _, err := m.Await(ctx, 3*time.Minute, fmt.Sprintf("kube-proxy of the node runs in mode %s", mode), equals(string(mode)), m.inside(m.node),
			m.lab.Tool("busybox"), "wget", "-q", "-O", "-", "http://127.0.0.1:10249/proxyMode"); err != nil {
			return err
		}
		if mode == kube.ProxyIPVS {
			if _, err := m.Do(ctx, m.inside(m.node), "cat", "/proc/net/ip_vs"); err != nil {
				return err
			}
		}
		if err := m.paths(ctx, mode); err != nil {
			return err
		}
		m.Note("mode %s took %.0f s", mode, time.Since(began).Seconds())
	}
	return nil
}

// pathCall is a call of a row, and whom the called pod should see.
type pathCall struct {
	call
	want caller
}

// paths plays the rows of a mode: all calls that should be answered at once, and those again that were not answered as they
// should, since kube-proxy has just started; then, once everything else works, what should not be reached.
func (m *modesWalk) paths(ctx context.Context, mode kube.ProxyMode) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not so within five minutes"))
	defer cancel()
	var answered, lost []pathCall
	for _, c := range callsOf(mode) {
		if c.want == notReachable {
			lost = append(lost, c)
		} else {
			answered = append(answered, c)
		}
	}
	for len(answered) > 0 {
		wrong, err := m.callAll(ctx, answered)
		if ctx.Err() != nil {
			return fmt.Errorf("kube-proxy in mode %s: %w: %w", mode, context.Cause(ctx), err)
		}
		if answered = wrong; err != nil {
			first, _, _ := strings.Cut(err.Error(), "\n")
			m.Note("not yet, for %d calls: %s", len(wrong), first)
		}
	}
	if _, err := m.callAll(ctx, lost); err != nil {
		return fmt.Errorf("kube-proxy in mode %s: %w", mode, err)
	}
	for _, r := range pathTable {
		if slices.Contains(r.modes, mode) {
			m.Seen("kube-proxy %s: %s: seen as %v, for %v", mode, r.path, r.seenAs, endpoints)
		}
	}
	return nil
}

// callsOf are all calls of a mode.
func callsOf(mode kube.ProxyMode) (out []pathCall) {
	for _, r := range pathTable {
		if !slices.Contains(r.modes, mode) {
			continue
		}
		for i, endpoint := range endpoints {
			out = append(out, pathCall{r.call(endpoint), r.seenAs[i]})
		}
	}
	return out
}

// callAll makes all calls once and returns those of which the called pods did not see what they should, and what it was.
func (m *modesWalk) callAll(ctx context.Context, calls []pathCall) (wrong []pathCall, err error) {
	byActor := map[string][]pathCall{}
	for _, c := range calls {
		byActor[c.from] = append(byActor[c.from], c)
	}
	type answer struct {
		seen []netip.Addr
		err  error
	}
	answers := map[string]chan answer{}
	for actor, calls := range byActor {
		c := make(chan answer, 1)
		answers[actor] = c
		go func() {
			seen, err := m.callFrom(ctx, actor, calls)
			c <- answer{seen, err}
		}()
	}
	var errs []error
	for actor, c := range answers {
		a := <-c
		for i, call := range byActor[actor] {
			err := a.err
			if err == nil {
				err = m.judgeCall(call, a.seen[i])
			}
			if err != nil {
				wrong, errs = append(wrong, call), append(errs, err)
			}
		}
	}
	return wrong, errors.Join(errs...)
}

// judgeCall compares whom the called pod saw, none where it was not reached, with whom it should.
func (m *modesWalk) judgeCall(c pathCall, seen netip.Addr) error {
	want := netip.Addr{}
	if who, ok := map[caller]string{theCaller: c.from, itself: c.from, asTheNode: hostPod}[c.want]; ok {
		var err error
		if want, err = netip.ParseAddr(m.seen.address[who]); err != nil {
			return fmt.Errorf("%s: the address of %s: %w", c.call, who, err)
		}
	}
	if seen != want {
		return fmt.Errorf("%s: the called pod saw %s, want %s (%s)", c.call, seen, want, c.want)
	}
	return nil
}

// callFrom makes calls from a pod and returns, in their order, whom the called pods saw: the zero address where nobody
// answered.
func (m *modesWalk) callFrom(ctx context.Context, actor string, calls []pathCall) ([]netip.Addr, error) {
	script := callScript(calls, func(c call) string {
		if c.service {
			return m.clusterIP[c.to]
		}
		return m.seen.address[hostPod]
	})
	o, err := m.Local(ctx, []string{"kubectl", "exec", actor, "--", "sh", "-c", script})
	if err != nil {
		return nil, err
	}
	m.save(o)
	seen, err := readCalls(len(calls), o.Stdout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", actor, err, o.Stderr)
	}
	return seen, nil
}

// lostSeconds is how long a call waits for its answer. Three SYNs fit into it.
const lostSeconds = 4

// callScript is a shell script that makes all calls at once and prints a line for each.
func callScript(calls []pathCall, host func(call) string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "ask() { a=$(timeout %d busybox wget -q -O - \"$1\" 2>/dev/null) || a=nobody; echo \"$n $a\"; }\n", lostSeconds)
	for n, c := range calls {
		fmt.Fprintf(&b, "n=%d ask http://%s:%d/cgi-bin/who &\n", n, host(c.call), c.port)
	}
	return b.String() + "wait\n"
}

// readCalls reads what callScript printed.
func readCalls(calls int, printed string) ([]netip.Addr, error) {
	out, read := make([]netip.Addr, calls), make([]bool, calls)
	for line := range strings.Lines(printed) {
		n, text, _ := strings.Cut(strings.TrimSpace(line), " ")
		i, err := strconv.Atoi(n)
		if err != nil || i < 0 || i >= calls {
			return nil, fmt.Errorf("read what calls came to: %q", line)
		}
		read[i] = true
		if text == "nobody" {
			continue
		}
		// The server listens on IPv6, too, and has IPv4 addresses in that form.
		a, err := netip.ParseAddr(strings.Trim(text, "[]"))
		if err != nil {
			return nil, fmt.Errorf("read whom a called pod saw: %w", err)
		}
		out[i] = a.Unmap()
	}
	if i := slices.Index(read, false); i >= 0 {
		return nil, fmt.Errorf("read what calls came to: nothing of number %d", i)
	}
	return out, nil
}
