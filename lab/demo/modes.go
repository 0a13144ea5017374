package demo

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"time"
)

// modesWalk is the step that shows the table of modes.
type modesWalk struct {
	*walk
	group string // of the branch pods
	seen  packets
	shown map[string]bool // claims and traffic of rows
	// clusterIP are the Services' addresses.
	clusterIP map[string]string
	// imported is when the nodes have the other release.
	imported chan error
}

// modes has branch pods of both modes side by side on one node and shows each row of the table with real packets; then
// that the host gets back what strict mode changed, and the opt-in for the kubelet's own connections.
//
// Each conversation is tried at three ports: one that all groups let through, one that the sender's don't let out and one
// that the receiver's don't let in. The VPC flow log then says which ENIs saw the packets and where they were refused:
// whose groups applied. What never passed an ENI is not in it.
func (w *walk) modes(ctx context.Context) error {
	m := &modesWalk{walk: w, shown: map[string]bool{}, imported: make(chan error, 1)}
	restore, err := m.rules(ctx)
	if err != nil {
		return err
	}
	listening, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		// It ends with the step: what it says then is no failure. Where it doesn't start, nothing connects.
		_, _ = m.inside(m.db)(listening, []string{m.lab.Tool("busybox"), "httpd", "-f", "-p", fmt.Sprint(direct.allowed), "-h", "/run"})
	}()
	go func() { m.imported <- m.lab.ImportOtherRelease(listening) }()
	for _, step := range []func(context.Context) error{
		m.strictFirst, m.switchToStandard, m.rows, m.metadata, m.proxies, m.hostGivenBack, m.kubeletLocal, m.updateUnderChurn, m.wholeTable, m.tidy, restore,
	} {
		if err := step(ctx); err != nil {
			return err
		}
	}
	return nil
}

// claim is for what shows a row.
func (m *modesWalk) claim(words string) {
	m.shown[words] = true
	m.Seen("%s", words)
}

func (m *modesWalk) wholeTable(context.Context) error {
	for _, r := range modeTable {
		if !m.shown[r.traffic] && !m.shown[r.claim] {
			return fmt.Errorf("row %q of the table of modes was not shown", r.traffic)
		}
	}
	return nil
}

// nodeAddresses are destinations that stay on the node, as their daemons set them up.
var nodeAddresses = map[string]string{nodeLocal: "169.254.20.10", podIdentity: "169.254.170.23"}

// strictFirst has pods wired in strict mode, the default.
func (m *modesWalk) strictFirst(ctx context.Context) error {
	node, small := m.node.Hostname(), m.small.Hostname()
	for _, a := range nodeAddresses {
		if _, err := m.Do(ctx, m.inside(m.node), "ip", "address", "add", a+"/32", "dev", "lo", "scope", "host"); err != nil {
			return err
		}
	}
	manifest := policyYAML(modesLabel, modesLabel, m.group) +
		listenYAML(strictPod, node, false, true, probesLetIn+hostPortYAML(strictPod)) + listenYAML(strictTwin, node, false, true, probeRefused) +
		listenYAML(regularPod, node, false, false, hostPortYAML(regularPod)) + listenYAML(hostPod, node, true, false, "") +
		listenYAML(farPod, small, false, false, "") + listenYAML(farHostPod, small, true, false, "") +
		nodeLocalYAML(node) + serviceYAML(regularPod) + serviceYAML(farPod) + serviceYAML(secondaryPod)
	for _, pod := range endpoints {
		manifest += nodePortsYAML(pod)
	}
	if err := m.apply(ctx, modesLabel, manifest); err != nil {
		return err
	}
	if err := m.dnsElsewhere(ctx); err != nil {
		return err
	}
	if err := m.await(ctx, "strict pods run, as the default has them, with TCP, HTTP and exec probes; the one with a probe that its group refuses isn't ready",
		map[string]string{strictPod: "true", strictTwin: "false", regularPod: "true", hostPod: "true", farPod: "true", farHostPod: "true", nodeLocal: "true"}); err != nil {
		return err
	}
	return m.probes(ctx, strictPod, strictTwin, true)
}

// await waits until pods run and are as ready as they should be.
func (m *modesWalk) await(ctx context.Context, claim string, ready map[string]string) error {
	return m.awaitListening(ctx, claim, ready, m.seen.address)
}

// probes looks for the kubelet's probes of two pods in the flow log: those that the groups let in, and the refused one.
func (m *modesWalk) probes(ctx context.Context, pod, twin string, strict bool) error {
	if err := m.interfaces(ctx); err != nil {
		return err
	}
	p := m.seen
	p.address["kubelet"] = m.node.Address.String()
	p.connected = map[try]bool{}
	w := local
	if strict {
		w = passing(theNode, thePod)
	}
	var tries []try
	for port, to := range map[uint16]string{httpProbePort: pod, tcpProbePort: pod, refusedProbePort: twin} {
		t := try{flow: flow{from: "kubelet", to: to}, port: port}
		if to == twin {
			t.side = refusedIn
		}
		p.connected[t] = !strict || to == pod // as the pods' readiness has it
		tries = append(tries, t)
	}
	return m.recorded(ctx, 0, func(records []record) error {
		p.records = records
		for _, t := range tries {
			if err := p.judge(t, w); err != nil {
				return err
			}
		}
		return nil
	})
}

// recorded waits until the flow log from that offset on is as it should be: its records come after the packets.
func (m *modesWalk) recorded(ctx context.Context, from int64, check func([]record) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("not so within a minute"))
	defer cancel()
	for {
		if err := m.lab.Flush(); err != nil {
			return err
		}
		b, err := os.ReadFile(m.lab.FlowLog())
		if err != nil {
			return fmt.Errorf("read the flow log: %w", err)
		}
		records, err := parseRecords(string(b[from:]))
		if err != nil {
			return err
		}
		if err = check(records); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the VPC flow log: %w: %w", context.Cause(ctx), err)
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// flowLogEnd is where the flow log's next records will be.
func (m *modesWalk) flowLogEnd() (int64, error) {
	if err := m.lab.Flush(); err != nil {
		return 0, err
	}
	fi, err := os.Stat(m.lab.FlowLog())
	if err != nil {
		return 0, fmt.Errorf("find the flow log's end: %w", err)
	}
	return fi.Size(), nil
}

// setAgent changes variables of aws-node, as users do, and waits for the rollout.
func (m *modesWalk) setAgent(ctx context.Context, claim string, assignments ...string) error {
	argv := append([]string{"kubectl", "-n", "kube-system", "set", "env", "daemonset", "aws-node"}, assignments...)
	if _, err := m.Do(ctx, m.Local, argv...); err != nil {
		return err
	}
	_, err := m.Await(ctx, 5*time.Minute, claim, contains("successfully rolled out"), m.Local,
		"kubectl", "-n", "kube-system", "rollout", "status", "daemonset", "aws-node", "--timeout=25s")
	return err
}

// switchToStandard switches the mode on the live node and has pods wired in the new one beside those of the old one.
func (m *modesWalk) switchToStandard(ctx context.Context) error {
	if err := m.secondaryAttached(ctx); err != nil {
		return err
	}
	if err := m.setAgent(ctx, "the mode is switched to standard while strict pods run", "POD_SECURITY_GROUP_ENFORCING_MODE=standard", "DISABLE_NETWORK_RESOURCE_PROVISIONING=true"); err != nil {
		return err
	}
	if err := m.secondaryOnly(ctx); err != nil {
		return err
	}
	node := m.node.Hostname()
	if err := m.apply(ctx, "modes-standard", listenYAML(standardPod, node, false, true, probesLetIn+hostPortYAML(standardPod))+listenYAML(standardTwin, node, false, true, probeRefused)+
		listenYAML(secondaryPod, node, false, false, hostPortYAML(secondaryPod))); err != nil {
		return err
	}
	if err := m.await(ctx, "standard pods run beside them and are ready, also by a probe that their group refuses; the strict pods are as they were",
		map[string]string{standardPod: "true", standardTwin: "true", secondaryPod: "true", strictPod: "true", strictTwin: "false"}); err != nil {
		return err
	}
	if err := m.probes(ctx, standardPod, standardTwin, false); err != nil {
		return err
	}
	m.claim(claimProbes)
	return nil
}

// rows plays all flows of the table at once.
func (m *modesWalk) rows(ctx context.Context) error {
	if err := m.services(ctx); err != nil {
		return err
	}
	type expected struct {
		row modeRow
		try
		way
	}
	var all []expected
	byActor, ways := map[string][]try{}, map[try]way{}
	for _, r := range modeTable {
		if r.flows == nil {
			continue
		}
		for _, mode := range []struct {
			pod, twin string
			way
		}{{strictPod, strictTwin, r.strict}, {standardPod, standardTwin, r.standard}} {
			for _, f := range r.flows(mode.pod, mode.twin) {
				for _, t := range f.tries(mode.way) {
					all = append(all, expected{r, t, mode.way})
					ways[t] = mode.way
					who := cmp.Or(t.caller, t.from)
					if !slices.Contains(byActor[who], t) {
						byActor[who] = append(byActor[who], t)
					}
				}
			}
		}
	}
	from, err := m.flowLogEnd()
	if err != nil {
		return err
	}
	if m.seen.connected, err = m.converse(ctx, byActor, func(t try) bool { return t.connects(ways[t]) }); err != nil {
		return err
	}
	if err := m.recorded(ctx, from, func(records []record) error {
		m.seen.records, m.seen.drops = records, m.lab.Fabric.Drops()
		for _, e := range all {
			if err := m.seen.judge(e.try, e.way); err != nil {
				return fmt.Errorf("%s: %w", e.row.traffic, err)
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for _, r := range modeTable {
		if r.flows != nil {
			m.shown[r.traffic] = true
			m.Seen("%s: strict %s, standard %s", r.traffic, r.strict, r.standard)
		}
	}
	// The pods' first probes were exec probes, and all that they tried they were told by kubectl exec.
	m.claim(claimExec)
	return nil
}
