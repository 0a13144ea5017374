package demo

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab/kube"
)

// pathsWalk plays the table of paths on a node whose pods and Services are there.
type pathsWalk struct {
	*walk
	endpoints []string          // those of the table's that there are
	regular   [2]string         // regular pods of the node
	address   map[string]string // of actors
	clusterIP map[string]string // of Services
}

// proxies has the node's kube-proxy run in one mode after the other and plays the table of paths in each. It goes on in the last.
func (p *pathsWalk) proxies(ctx context.Context, modes ...kube.ProxyMode) error {
	for _, mode := range modes {
		began := time.Now()
		if err := p.lab.SetProxyMode(ctx, p.node, mode); err != nil {
			return err
		}
		if _, err := p.Await(ctx, 3*time.Minute, fmt.Sprintf("kube-proxy of the node runs in mode %s", mode), equals(string(mode)), p.inside(p.node),
			p.lab.Tool("busybox"), "wget", "-q", "-O", "-", "http://127.0.0.1:10249/proxyMode"); err != nil {
			return err
		}
		if mode == kube.ProxyIPVS {
			if _, err := p.Do(ctx, p.inside(p.node), "cat", "/proc/net/ip_vs"); err != nil {
				return err
			}
		}
		if err := p.paths(ctx, mode); err != nil {
			return err
		}
		p.Note("mode %s took %.0f s", mode, time.Since(began).Seconds())
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
func (p *pathsWalk) paths(ctx context.Context, mode kube.ProxyMode) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 5*time.Minute, errors.New("not so within five minutes"))
	defer cancel()
	var answered, lost []pathCall
	for _, c := range p.callsOf(mode) {
		if c.want == notReachable {
			lost = append(lost, c)
		} else {
			answered = append(answered, c)
		}
	}
	for len(answered) > 0 {
		wrong, err := p.callAll(ctx, answered)
		if ctx.Err() != nil {
			return fmt.Errorf("kube-proxy in mode %s: %w: %w", mode, context.Cause(ctx), err)
		}
		if answered = wrong; err != nil {
			first, _, _ := strings.Cut(err.Error(), "\n")
			p.Note("not yet, for %d calls: %s", len(wrong), first)
		}
	}
	if _, err := p.callAll(ctx, lost); err != nil {
		return fmt.Errorf("kube-proxy in mode %s: %w", mode, err)
	}
	for _, r := range pathTable {
		if slices.Contains(r.modes, mode) {
			p.Seen("kube-proxy %s: %s: seen as %v, for %v", mode, r.path, p.seenAs(r), p.endpoints)
		}
	}
	return nil
}

// callsOf are all calls of a mode.
func (p *pathsWalk) callsOf(mode kube.ProxyMode) (out []pathCall) {
	for _, r := range pathTable {
		if !slices.Contains(r.modes, mode) {
			continue
		}
		for i, want := range p.seenAs(r) {
			endpoint := p.endpoints[i]
			neighbour := p.regular[0]
			if endpoint == neighbour {
				neighbour = p.regular[1]
			}
			out = append(out, pathCall{r.call(endpoint, neighbour), want})
		}
	}
	return out
}

// seenAs is whom the endpoints see by a row, in their order.
func (p *pathsWalk) seenAs(r pathRow) (out []caller) {
	for _, e := range p.endpoints {
		out = append(out, r.seenAs[slices.Index(endpoints[:], e)])
	}
	return out
}

// callAll makes all calls once and returns those of which the called pods did not see what they should, and what it was.
func (p *pathsWalk) callAll(ctx context.Context, calls []pathCall) (wrong []pathCall, err error) {
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
			seen, err := p.callFrom(ctx, actor, calls)
			c <- answer{seen, err}
		}()
	}
	var errs []error
	for actor, c := range answers {
		a := <-c
		for i, call := range byActor[actor] {
			err := a.err
			if err == nil {
				err = p.judgeCall(call, a.seen[i])
			}
			if err != nil {
				wrong, errs = append(wrong, call), append(errs, err)
			}
		}
	}
	return wrong, errors.Join(errs...)
}

// judgeCall compares whom the called pod saw, none where it was not reached, with whom it should.
func (p *pathsWalk) judgeCall(c pathCall, seen netip.Addr) error {
	want := netip.Addr{}
	if who, ok := map[caller]string{theCaller: c.from, itself: c.from, asTheNode: hostPod}[c.want]; ok {
		var err error
		if want, err = netip.ParseAddr(p.address[who]); err != nil {
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
func (p *pathsWalk) callFrom(ctx context.Context, actor string, calls []pathCall) ([]netip.Addr, error) {
	script := callScript(calls, func(c call) string {
		if c.service {
			return p.clusterIP[c.to]
		}
		return p.address[hostPod]
	})
	o, err := p.Local(ctx, []string{"kubectl", "exec", actor, "--", "sh", "-c", script})
	if err != nil {
		return nil, err
	}
	p.save(o)
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
		fmt.Fprintf(&b, "n=%d ask http://%s/cgi-bin/who &\n", n, net.JoinHostPort(host(c.call), fmt.Sprint(c.port)))
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
