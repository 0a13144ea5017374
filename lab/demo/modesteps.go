package demo

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// outsideAddress is no address of the VPC (TEST-NET-3, RFC 5737).
const outsideAddress = "203.0.113.10"

// interfaces asks EC2 who owns which address.
func (m *modesWalk) interfaces(ctx context.Context) error {
	o, err := m.Local(ctx, []string{"aws", "ec2", "describe-network-interfaces", "--output", "json"})
	if err != nil {
		return err
	}
	m.save(o)
	var out struct {
		NetworkInterfaces []struct {
			NetworkInterfaceID string `json:"NetworkInterfaceId"`
			InterfaceType      string
			Groups             []struct {
				GroupID string `json:"GroupId"`
			}
			PrivateIPAddresses []struct {
				PrivateIPAddress string `json:"PrivateIpAddress"`
			} `json:"PrivateIpAddresses"`
		}
	}
	if err := json.Unmarshal([]byte(o.Stdout), &out); err != nil {
		return fmt.Errorf("read the list of network interfaces: %w: %s", err, o.Stderr)
	}
	m.seen.eni = map[string]eniOf{}
	for _, i := range out.NetworkInterfaces {
		e := eniOf{id: i.NetworkInterfaceID, branch: i.InterfaceType == "branch"}
		for _, g := range i.Groups {
			e.groups = append(e.groups, g.GroupID)
		}
		for _, a := range i.PrivateIPAddresses {
			m.seen.eni[a.PrivateIPAddress] = e
		}
	}
	return nil
}

// services finds out where flows go that don't go to a pod's own address.
func (m *modesWalk) services(ctx context.Context) error {
	if err := m.interfaces(ctx); err != nil {
		return err
	}
	for actor, a := range map[string]string{
		database: m.db.Address.String(), apiServer: m.lab.ControlPlaneMachine.Address.String(), outside: outsideAddress,
		nodeLocal: nodeAddresses[nodeLocal], podIdentity: nodeAddresses[podIdentity],
	} {
		m.seen.address[actor] = a
	}
	dns, err := m.dnsPod(ctx)
	if err != nil {
		return err
	}
	m.seen.address[clusterDNS] = dns.Status.PodIP
	m.clusterIP, err = m.clusterIPs(ctx)
	return err
}

// dial is where a try goes to: a Service's ClusterIP and port, or the actor's address and the flow's port.
func (m *modesWalk) dial(t try) (string, uint16) {
	if t.nodePort != 0 {
		return m.seen.address[hostPod], t.nodePort + uint16(t.side)
	}
	switch t.service {
	case "":
		return m.seen.address[t.to], t.port
	case clusterDNS:
		return "", t.port // the pod's own resolver
	case apiServer:
		return m.clusterIP["kubernetes"], 443
	default:
		return m.clusterIP[t.service], t.port
	}
}

// rounds is how often a conversation is tried that ought to connect. A machine with more to do than it has processors for
// lets a first packet wait for longer than nc does; what the groups or a wrong route refuse stays refused.
const rounds = 3

// converse makes all tries, those of all actors at once, and those again that should have connected and have not.
func (m *modesWalk) converse(ctx context.Context, byActor map[string][]try, connects func(try) bool) (map[try]bool, error) {
	all := map[try]bool{}
	for round := 1; ; round++ {
		connected, err := m.converseOnce(ctx, byActor)
		maps.Copy(all, connected)
		byActor = missing(byActor, all, connects)
		if len(byActor) == 0 {
			return all, nil
		}
		if round == rounds || ctx.Err() != nil {
			return all, err
		}
		for _, actor := range slices.Sorted(maps.Keys(byActor)) {
			m.Note("not connected in round %d: %s %v", round, actor, byActor[actor])
		}
		if err != nil {
			m.Note("round %d: %v", round, err)
		}
	}
}

// missing are the tries of which nothing is known, and those that should have connected and have not.
func missing(byActor map[string][]try, connected map[try]bool, connects func(try) bool) map[string][]try {
	out := map[string][]try{}
	for actor, tries := range byActor {
		for _, t := range tries {
			if did, known := connected[t]; !known || !did && connects(t) {
				out[actor] = append(out[actor], t)
			}
		}
	}
	return out
}

func (m *modesWalk) converseOnce(ctx context.Context, byActor map[string][]try) (map[try]bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex
		all  = map[try]bool{}
		errs []error
	)
	for actor, tries := range byActor {
		wg.Go(func() {
			connected, err := m.converseFrom(ctx, actor, tries)
			mu.Lock()
			defer mu.Unlock()
			errs = append(errs, err)
			maps.Copy(all, connected)
		})
	}
	wg.Wait()
	return all, errors.Join(errs...)
}

func (m *modesWalk) converseFrom(ctx context.Context, actor string, tries []try) (map[try]bool, error) {
	script := tryScript(tries, m.dial)
	run, argv := m.Local, []string{"kubectl", "exec", actor, "--", "sh", "-c", script}
	if actor == database {
		run, argv = m.inside(m.db), []string{"sh", "-c", "PATH=" + m.lab.BinDir() + ":$PATH\n" + script}
	}
	o, err := run(ctx, argv)
	if err != nil {
		return nil, err
	}
	m.save(o)
	connected, err := readTries(tries, o.Stdout)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %s", actor, err, o.Stderr)
	}
	return connected, nil
}

// metadata shows that a strict pod's question to the metadata service leaves by the branch ENI and its answer comes back
// there, while a standard pod's leaves by the node's ENI, where it can't be told from the node's own. It is not in the
// flow log, on AWS neither.
func (m *modesWalk) metadata(ctx context.Context) error {
	for _, pod := range []string{standardPod, strictPod} {
		o, err := m.Local(ctx, []string{"kubectl", "exec", pod, "--", "sh", "-c", "timeout 6 busybox nc -w 3 169.254.169.254 80 -e true && echo connected || echo not connected"})
		if err != nil {
			return err
		}
		m.keep(o)
		if err := equals("not connected")(o); err != nil {
			return err
		}
	}
	dump := func(pod string) []string {
		return []string{m.lab.Tool("tcpdump"), "-Z", "root", "-nn", "-e", "-r", m.lab.Pcap(m.trunk), "vlan and host 169.254.169.254 and host " + m.seen.address[pod]}
	}
	if _, err := m.Await(ctx, 30*time.Second, "on the trunk's port: the strict pod asks the metadata service by its branch ENI and is answered there",
		contains("Flags [S],", "Flags [S.],"), m.Local, dump(strictPod)...); err != nil {
		return err
	}
	// What was sent before is there by now.
	if _, err := m.Await(ctx, 10*time.Second, "on the trunk's port: nothing of the standard pod for the metadata service", lacks("Flags"), m.Local, dump(standardPod)...); err != nil {
		return err
	}
	m.claim(claimMetadata)
	return nil
}

// hostGivenBack ends the last strict pods while standard ones go on.
func (m *modesWalk) hostGivenBack(ctx context.Context) error {
	node := m.inside(m.node)
	host := []string{"sh", "-c", "ip rule; cd /proc/sys/net/ipv4; grep . tcp_early_demux udp_early_demux"}
	if _, err := m.Await(ctx, 10*time.Second, "with the mode switched the host keeps what its strict pods need: the local rule behind theirs, no early demux",
		contains("20:\tfrom all lookup local", "tcp_early_demux:0", "udp_early_demux:0"), node, host...); err != nil {
		return err
	}
	if _, err := m.Do(ctx, m.Local, "kubectl", "delete", "pod", strictPod, strictTwin); err != nil {
		return err
	}
	if _, err := m.Await(ctx, time.Minute, "after the last strict pod the host has its local rule and early demux back", both(
		contains("0:\tfrom all lookup local", "tcp_early_demux:1", "udp_early_demux:1"), lacks("\n10:\t", "\n20:\t", "\n8:\t", "\n5:\t")), node, host...); err != nil {
		return err
	}
	// Standard pods don't mind.
	t := map[string][]try{regularPod: to(regularPod, standardPod)[0].tries(local)[:1], farPod: to(farPod, standardPod)[0].tries(local)[:1]}
	connected, err := m.converse(ctx, t, func(try) bool { return true })
	if err != nil {
		return err
	}
	for t, ok := range connected {
		if !ok {
			return fmt.Errorf("%s: not connected after the strict pods' end", t)
		}
	}
	if err := m.await(ctx, "standard pods go on and stay ready", map[string]string{standardPod: "true", standardTwin: "true"}); err != nil {
		return err
	}
	_, err = m.Do(ctx, m.Local, "kubectl", "delete", "pod", standardPod, standardTwin)
	return err
}

// kubeletLocal switches back to strict, now with the opt-in: a strict pod is ready by a probe that its group refuses,
// while another process in the host's network is refused as before.
func (m *modesWalk) kubeletLocal(ctx context.Context) error {
	if err := m.setAgent(ctx, "the mode is switched back to strict, with BRANCHLINE_KUBELET_LOCAL", "POD_SECURITY_GROUP_ENFORCING_MODE-", "DISABLE_NETWORK_RESOURCE_PROVISIONING-", "BRANCHLINE_KUBELET_LOCAL=true"); err != nil {
		return err
	}
	if err := m.apply(ctx, "modes-kubelet-local", listenYAML(strictTwin, m.node.Hostname(), false, true, probeRefused)); err != nil {
		return err
	}
	if err := m.await(ctx, "a strict pod is ready by a probe that its group doesn't let in", map[string]string{strictTwin: "true"}); err != nil {
		return err
	}
	if err := m.interfaces(ctx); err != nil {
		return err
	}
	// While the other process's packets are refused, which takes seconds, the kubelet goes on probing.
	from, err := m.flowLogEnd()
	if err != nil {
		return err
	}
	p := m.seen
	w := passing(theNode, thePod)
	tries := to(hostPod, strictTwin)[0].tries(w)
	if p.connected, err = m.converse(ctx, map[string][]try{hostPod: tries}, func(t try) bool { return t.connects(w) }); err != nil {
		return err
	}
	probe := try{flow: flow{from: hostPod, to: strictTwin}, port: refusedProbePort, side: refusedIn}
	p.connected[probe] = true
	if err := m.recorded(ctx, from, func(records []record) error {
		p.records = records
		for _, t := range tries {
			if err := p.judge(t, w); err != nil {
				return err
			}
		}
		return p.judge(probe, local)
	}); err != nil {
		return err
	}
	m.claim(claimKubeletLocal)
	return nil
}

// tidy takes away what the step made. The opt-in went with the other release.
func (m *modesWalk) tidy(ctx context.Context) error {
	if _, err := m.Do(ctx, m.Local, "kubectl", "delete", "pods,services,configmaps", "-l", "step="+modesLabel); err != nil {
		return err
	}
	if _, err := m.Do(ctx, m.Local, "kubectl", "delete", "sgp", modesLabel); err != nil {
		return err
	}
	for _, a := range nodeAddresses {
		if _, err := m.Do(ctx, m.inside(m.node), "ip", "address", "delete", a+"/32", "dev", "lo"); err != nil {
			return err
		}
	}
	return nil
}

// dnsPod is the cluster's CoreDNS.
type dnsPod struct {
	Spec struct {
		NodeName string `json:"nodeName"`
	} `json:"spec"`
	Status struct {
		PodIP string `json:"podIP"`
	} `json:"status"`
}

func (m *modesWalk) dnsPod(ctx context.Context) (dnsPod, error) {
	var l struct{ Items []dnsPod }
	o, err := m.Local(ctx, []string{"kubectl", "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "json"})
	if err != nil {
		return dnsPod{}, err
	}
	if err := json.Unmarshal([]byte(o.Stdout), &l); err != nil || len(l.Items) != 1 {
		return dnsPod{}, fmt.Errorf("find the pod of CoreDNS: %d pods, %w %s", len(l.Items), err, o.Stderr)
	}
	return l.Items[0], nil
}

// dnsElsewhere has CoreDNS on the other node, where the scheduler put it unless that node was late.
func (m *modesWalk) dnsElsewhere(ctx context.Context) error {
	p, err := m.dnsPod(ctx)
	if err != nil || p.Spec.NodeName == m.small.Hostname() {
		return err
	}
	if _, err := m.Do(ctx, m.Local, "kubectl", "-n", "kube-system", "patch", "deployment", "coredns", "-p",
		`{"spec":{"strategy":{"type":"Recreate","rollingUpdate":null},"template":{"spec":{"nodeSelector":{"kubernetes.io/hostname":"`+m.small.Hostname()+`"}}}}}`); err != nil {
		return err
	}
	_, err = m.Await(ctx, 2*time.Minute, "CoreDNS runs on the other node", contains("successfully rolled out"), m.Local,
		"kubectl", "-n", "kube-system", "rollout", "status", "deployment", "coredns", "--timeout=25s")
	return err
}

// nodeLocalYAML is CoreDNS in the host's network, as NodeLocal DNS is.
func nodeLocalYAML(node string) string {
	return fmt.Sprintf(`---
apiVersion: v1
kind: ConfigMap
metadata: {name: %[1]s, namespace: default, labels: {step: %[2]s}}
data:
  Corefile: ".:53 {\n  errors\n  forward . /etc/resolv.conf\n}\n"
---
apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: default, labels: {step: %[2]s}}
spec:
  nodeSelector: {kubernetes.io/hostname: %[3]s}
  hostNetwork: true
  dnsPolicy: Default
  terminationGracePeriodSeconds: 1
  automountServiceAccountToken: false
  containers:
  - name: coredns
    image: %[4]s
    imagePullPolicy: IfNotPresent
    args: [-conf, /etc/coredns/Corefile]
    volumeMounts: [{name: config, mountPath: /etc/coredns}]
  volumes: [{name: config, configMap: {name: %[1]s}}]
`, nodeLocal, modesLabel, node, lab.DNSImage)
}
