//go:build lab

package demo

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// webPort is where a pod of each node answers. The nodes' group does not let POD_SG in there.
const webPort = 8080

// started brings a red pod (a regular one), a green one (a branch pod with POD_SG) and a blue one (with another group) to the
// m5.large, and a regular one that answers to each node.
func (s *ipv6Walk) started(ctx context.Context) error {
	for app, group := range map[string]string{"green-pod": s.podGroup, "blue-pod": s.otherGroup} {
		if err := s.apply(ctx, "policy-"+app, policyYAML(app, app, group)); err != nil {
			return err
		}
	}
	manifest := webYAML()
	for _, app := range []string{"green-pod", "blue-pod", "red-pod"} {
		manifest += "---\n" + clientYAML(app, s.lab.DatabaseHost())
	}
	if err := s.apply(ctx, "pods", manifest); err != nil {
		return err
	}
	if err := s.pathPods(ctx); err != nil {
		return err
	}
	for app, p := range map[string]*podInfo{"green-pod": &s.green, "blue-pod": &s.blue, "red-pod": &s.red} {
		var err error
		if *p, err = s.awaitPod(ctx, app, ""); err != nil {
			return err
		}
	}
	if err := s.findWeb(ctx); err != nil {
		return err
	}
	return s.inPrefix(ctx, "default", "app in (red-pod,web)")
}

// findWeb learns the web pods' addresses.
func (s *ipv6Walk) findWeb(ctx context.Context) error {
	_, err := s.Await(ctx, 2*time.Minute, "a web pod runs on each node", func(o Output) error {
		s.web = map[string]string{}
		for line := range strings.Lines(o.Stdout) {
			if f := strings.Fields(line); len(f) == 3 && f[2] == "true" {
				s.web[f[0]] = f[1]
			}
		}
		if len(s.web) != 2 {
			return fmt.Errorf("of the web pods these are ready: %v", s.web)
		}
		return nil
	}, s.Local, "kubectl", "get", "pods", "-l", "app=web", "-o", `jsonpath={range .items[*]}{.spec.nodeName} {.status.podIP} {.status.containerStatuses[0].ready}{"\n"}{end}`)
	return err
}

// webYAML is a pod on each node that tells who asks, and the Service of them.
func webYAML() string {
	return fmt.Sprintf(`apiVersion: apps/v1
kind: DaemonSet
metadata: {name: web, namespace: default}
spec:
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 1
      automountServiceAccountToken: false
      containers:
      - name: web
        image: %s
        imagePullPolicy: IfNotPresent
        command: [sh, -c, '%s']
        readinessProbe: {httpGet: {port: %[3]d, path: /}, periodSeconds: 2, timeoutSeconds: 5}
        volumeMounts: [{name: tmp, mountPath: /tmp}]
      volumes: [{name: tmp, emptyDir: {}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: default}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: %[3]d}]
`, lab.ClientImage, listenScript(fmt.Sprint(webPort)), webPort)
}

// ask has a pod ask a URL; it prints what comes back, or why nothing does: nothing at all where packets are lost.
func (s *ipv6Walk) ask(p podInfo, url string) []string {
	return []string{"kubectl", "exec", p.name, "--", "sh", "-c", fmt.Sprintf("timeout %d busybox wget -q -O - %s 2>&1 || echo nobody", lostSeconds, url)}
}

// unanswered is a check for a URL from which nothing came, not even a refusal.
var unanswered = both(contains("nobody"), lacks("refused", "unreachable"))

func who(address string, port int) string {
	return fmt.Sprintf("http://[%s]:%d/cgi-bin/who", address, port)
}

func (s *ipv6Walk) regularPods(ctx context.Context) error {
	for _, m := range []lab.Machine{s.node, s.small} {
		if _, err := s.Await(ctx, time.Minute, "the red pod reaches the regular pod of the "+m.Type, contains(s.red.ip), s.Local, s.ask(s.red, who(s.web[m.Hostname()], webPort))...); err != nil {
			return err
		}
	}
	if _, err := s.Await(ctx, time.Minute, "and a Service by its name", contains(s.red.ip), s.Local, s.ask(s.red, "http://web/cgi-bin/who")...); err != nil {
		return err
	}
	// kube-proxy's, on the node: of IPv4.
	if _, err := s.Await(ctx, time.Minute, "by IPv4 it reaches what its node does", contains("lastUpdated"), s.Local, s.ask(s.red, fmt.Sprintf("http://%s:10256/healthz", s.small.Address))...); err != nil {
		return err
	}
	if err := s.logged(ctx, "from the node's IPv4 address", s.small.ENIID, s.node.Address.String(), s.small.Address.String(), 10256, "ACCEPT"); err != nil {
		return err
	}
	return s.logged(ctx, "what kubectl exec and logs show comes from the kubelet's IPv6 address", s.node.ENIID,
		s.lab.ControlPlaneMachine.IPv6.String(), s.node.IPv6.String(), 10250, "ACCEPT")
}

func (s *ipv6Walk) branchPods(ctx context.Context) error {
	if err := s.greenReads(ctx); err != nil {
		return err
	}
	if err := s.greenHasBranch(ctx); err != nil {
		return err
	}
	if _, err := s.Await(ctx, 30*time.Second, "EC2 has the green pod's address on that ENI", equals(s.green.eniID), s.Local, "aws", "ec2", "describe-network-interfaces",
		"--filters", "Name=ipv6-addresses.ipv6-address,Values="+s.green.ip, "--output", "text", "--query", "NetworkInterfaces[].NetworkInterfaceId"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "the trunk's port carries the green pod's IPv6 packets with its 802.1Q tag", contains("5432"), s.Local,
		s.lab.Tool("tcpdump"), "-Z", "root", "-nn", "-e", "-c", "2", "-r", s.lab.Pcap(s.trunk), fmt.Sprintf("vlan %d and ip6 and tcp port 5432", s.green.vlanID)); err != nil {
		return err
	}
	for color, p := range map[string]podInfo{"red": s.red, "blue": s.blue} {
		if _, err := s.Await(ctx, 2*time.Minute, "the "+color+" pod's connection to the database times out, while it resolves its name",
			contains("name "+s.lab.DatabaseHost()+": resolved", fmt.Sprintf("(%s), port 5432 failed: timeout expired", s.db.IPv6)), s.Local, s.logsSince(p, 60)...); err != nil {
			return err
		}
		if err := s.logged(ctx, "the VPC flow log has the REJECT at the database's ENI", s.db.ENIID, p.ip, s.db.IPv6.String(), 5432, "REJECT"); err != nil {
			return err
		}
		if err := s.dropped(ctx, "no rule of RDS_SG lets it in", s.db.ENIID, p.ip, s.db.IPv6.String(), 5432); err != nil {
			return err
		}
	}
	// On its own node, too: what a strict pod sends and gets passes its ENI.
	for _, m := range []lab.Machine{s.node, s.small} {
		if _, err := s.Await(ctx, time.Minute, "the green pod does not reach the regular pod of the "+m.Type+", whose group does not let POD_SG in", unanswered, s.Local,
			s.ask(s.green, who(s.web[m.Hostname()], webPort))...); err != nil {
			return err
		}
		if err := s.dropped(ctx, "no rule of the nodes' group lets it in", m.ENIID, s.green.ip, s.web[m.Hostname()], webPort); err != nil {
			return err
		}
	}
	return s.strict(ctx)
}

// strict shows that a pod of the node does not reach the green pod past its groups, which let nobody in.
func (s *ipv6Walk) strict(ctx context.Context) error {
	if _, err := s.Await(ctx, time.Minute, "the red pod gets no answer from the green one on its node", unanswered, s.Local, s.ask(s.red, who(s.green.ip, webPort))...); err != nil {
		return err
	}
	return s.dropped(ctx, "no rule of POD_SG lets it in", s.green.eniID, s.red.ip, s.green.ip, webPort)
}

// dropped waits for a SYN that an ENI's groups did not let in.
func (s *ipv6Walk) dropped(ctx context.Context, claim, eniID, from, to string, port int) error {
	_, err := s.Await(ctx, time.Minute, claim, contains("no-rule"), s.fresh,
		"grep", "-m", "1", "-E", fmt.Sprintf(`%s ingress dropped: no-rule .*tcp \[%s\]:[0-9]+ > \[%s\]:%d \[SYN\]`, eniID, from, to, port), s.lab.DropLog())
	return err
}

// standardMode has a second green pod that is wired in standard mode. Those that are there stay as they are.
func (s *ipv6Walk) standardMode(ctx context.Context) error {
	killed, err := s.lab.Kill(ctx, lab.Agent)
	if err != nil {
		return err
	}
	s.Note("kill -9: %s", killed)
	if _, err := s.Do(ctx, s.Local, s.system("set", "env", "daemonset", "aws-node", "POD_SECURITY_GROUP_ENFORCING_MODE=standard")...); err != nil {
		return err
	}
	if _, err := s.Await(ctx, 4*time.Minute, "standard mode is rolled out", contains("successfully rolled out"), s.Local,
		s.system("rollout", "status", "daemonset", "aws-node", "--timeout=25s")...); err != nil {
		return err
	}
	if p, err := s.prefix(ctx, s.node); err != nil || p != s.prefixes[s.node.Hostname()] {
		return fmt.Errorf("the m5.large's prefix is %s, it was %s (%w)", p, s.prefixes[s.node.Hostname()], err)
	}
	if _, err := s.Do(ctx, s.Local, "kubectl", "scale", "deployment/green-pod", "deployment/red-pod", "--replicas=2"); err != nil {
		return err
	}
	if s.later, err = s.awaitPod(ctx, "green-pod", s.green.uid); err != nil {
		return err
	}
	second, err := s.awaitPod(ctx, "red-pod", s.red.uid)
	if err != nil {
		return err
	}
	for _, held := range []string{s.red.ip, s.web[s.node.Hostname()], s.prefixes[s.node.Hostname()].Addr().String()} {
		if second.ip == held {
			return fmt.Errorf("the second red pod got %s, which another has", held)
		}
	}
	if err := s.inPrefix(ctx, "default", "app in (red-pod,web)"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "the standard-mode pod reads the table from its branch ENI's address", contains("(3 rows)", s.later.ip), s.Local,
		"kubectl", "exec", s.later.name, "--", "psql", "-X", "-c", "SELECT greeting, inet_client_addr() FROM welcome"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "a pod of its node reaches it without its groups being asked", contains("Connection refused"), s.Local,
		s.ask(s.red, who(s.later.ip, webPort))...); err != nil {
		return err
	}
	if err := s.strict(ctx); err != nil {
		return err
	}
	_, err = s.Await(ctx, time.Minute, "the strict pod still reads the table", contains("(3 rows)", s.green.ip), s.Local,
		"kubectl", "exec", s.green.name, "--", "psql", "-X", "-c", "SELECT greeting, inet_client_addr() FROM welcome")
	return err
}
