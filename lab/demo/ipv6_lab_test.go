//go:build lab

package demo

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/lab"
)

// TestAnIPv6Cluster is the walk through a whole Kubernetes with IPv6: nodes, pods and Services have addresses of that family
// alone, as on EKS. The node with branch pods is a virtual machine, for they need a kernel with 802.1Q; the controller is a
// Deployment, so that its webhooks are called at a node's IPv6 address.
func TestAnIPv6Cluster(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	s := &ipv6Walk{walk: inLab(t, ctx, lab.Options{Controller: lab.Deployment, IPv6: true})}
	s.play(t, ctx, []labStep{
		{"1", "a cluster whose nodes, pods and Services have IPv6 addresses alone", s.nodes},
		{"2", "security groups and a database that has both families", s.outside},
		{"3", "ENABLE_POD_ENI=true: a trunk ENI, a label, a capacity of 9", s.enable},
		{"4", "pods of each kind", s.started},
		{"5", "regular pods reach each other, Services by name, and IPv4 by their node", s.regularPods},
		{"6", "a branch pod reaches what its group allows, and others don't", s.branchPods},
		{"7", "the agent is killed, and rolled out in standard mode", s.standardMode},
		{"8", "Services, ports of the node and hostPorts in each of kube-proxy's modes", s.paths},
		{"9", "pods are torn down", s.tornDown},
		{"10", "the nodes' role needed no more than its two policies", s.permitted},
	}, func(context.Context) { s.explain() })
}

// ipv6Walk is the walk through an IPv6 cluster.
type ipv6Walk struct {
	*walk
	otherGroup string                  // of the blue pod: RDS_SG doesn't let it in
	prefixes   map[string]netip.Prefix // of nodes, by name
	web        map[string]string       // the web pod's address by node
	blue       podInfo
	later      podInfo  // a green one, in standard mode
	torn       []string // addresses of the pods of the table of paths
}

func (s *ipv6Walk) nodes(ctx context.Context) error {
	s.prefixes = map[string]netip.Prefix{}
	for _, m := range []lab.Machine{s.node, s.small} {
		if _, err := s.Await(ctx, 3*time.Minute, "the "+m.Type+" is Ready, and its IPv6 address is the only one that the cluster knows", equals("True "+m.IPv6.String()), s.Local,
			"kubectl", "get", "node", m.Hostname(), "-o", `jsonpath={.status.conditions[?(@.type=="Ready")].status} {.status.addresses[?(@.type=="InternalIP")].address}`); err != nil {
			return err
		}
		p, err := s.prefix(ctx, m)
		if err != nil {
			return err
		}
		s.prefixes[m.Hostname()] = p
	}
	for _, what := range []string{"daemonset/aws-node", "deployment/coredns", "deployment/" + controllerName} {
		if _, err := s.Await(ctx, 3*time.Minute, what+" is rolled out", contains("successfully rolled out"), s.Local, s.system("rollout", "status", what, "--timeout=25s")...); err != nil {
			return err
		}
	}
	if _, err := s.Await(ctx, time.Minute, "Services have IPv6 addresses, and the API server's leads to its own", func(o Output) error {
		for line := range strings.Lines(o.Stdout) {
			f := strings.Fields(line)
			if a, err := netip.ParseAddr(f[len(f)-1]); err != nil || !a.Is6() {
				return fmt.Errorf("%q has no IPv6 address", line)
			}
		}
		return contains("kubernetes "+s.lab.ControlPlaneMachine.IPv6.String(), "kube-dns ")(o)
	}, s.Local, "kubectl", "get", "services,endpointslices", "-A", "-o",
		`jsonpath={range .items[*]}{.metadata.name} {.spec.clusterIP}{.endpoints[0].addresses[0]}{"\n"}{end}`); err != nil {
		return err
	}
	if err := s.inPrefix(ctx, "kube-system", "k8s-app!=aws-node,app!="+controllerName); err != nil {
		return err
	}
	return s.forgedIsDenied(ctx)
}

// prefix asks EC2 for the one prefix of a node's primary ENI.
func (s *ipv6Walk) prefix(ctx context.Context, m lab.Machine) (p netip.Prefix, err error) {
	_, err = s.Await(ctx, time.Minute, "the primary ENI of the "+m.Type+" has one prefix", func(o Output) error {
		p, err = netip.ParsePrefix(strings.TrimSpace(o.Stdout))
		return err
	}, s.Local, "aws", "ec2", "describe-network-interfaces", "--network-interface-ids", m.ENIID, "--output", "text", "--query", "NetworkInterfaces[].Ipv6Prefixes[].Ipv6Prefix")
	return p, err
}

// inPrefix wants each pod of a selector to have one address, of its node's prefix.
func (s *ipv6Walk) inPrefix(ctx context.Context, namespace, selector string) error {
	_, err := s.Await(ctx, 3*time.Minute, "each pod ("+selector+") has one address, of its node's prefix", func(o Output) error {
		if strings.TrimSpace(o.Stdout) == "" {
			return errors.New("there is none")
		}
		for line := range strings.Lines(o.Stdout) {
			f := strings.Fields(line)
			if len(f) != 3 {
				return fmt.Errorf("a pod, its node and one address are not in %q", line)
			}
			if a, err := netip.ParseAddr(f[2]); err != nil || !s.prefixes[f[1]].Contains(a) {
				return fmt.Errorf("%q: the node's prefix is %s", line, s.prefixes[f[1]])
			}
		}
		return nil
	}, s.Local, "kubectl", "-n", namespace, "get", "pods", "-l", selector, "-o", `jsonpath={range .items[*]}{.metadata.name} {.spec.nodeName} {.status.podIPs[*].ip}{"\n"}{end}`)
	return err
}

func (s *ipv6Walk) outside(ctx context.Context) error {
	if err := s.groups(ctx); err != nil {
		return err
	}
	o, err := s.Do(ctx, s.Local, "aws", "ec2", "create-security-group", "--group-name", "OTHER_SG", "--description", "of the blue pod",
		"--vpc-id", s.lab.Network.VPCID, "--query", "GroupId", "--output", "text")
	if err != nil {
		return err
	}
	s.otherGroup = strings.TrimSpace(o.Stdout)
	if err := s.authorize(ctx, s.lab.Network.NodeGroupID, "udp", "53", "--source-group", s.otherGroup); err != nil {
		return err
	}
	return s.database(ctx)
}

// tornDown deletes what there is of the walk and looks at the m5.large.
func (s *ipv6Walk) tornDown(ctx context.Context) error {
	// Nobody calls a Service any more, and in mode ipvs kube-proxy follows each pod's end by dozens of programs.
	if _, err := s.Do(ctx, s.inside(s.node), "sh", "-c", "kill -STOP $(grep -lx kube-proxy /proc/[0-9]*/comm | cut -d/ -f3)"); err != nil {
		return err
	}
	if _, err := s.Do(ctx, s.Local, "kubectl", "delete", "--wait=false", "deployment/green-pod", "deployment/blue-pod", "deployment/red-pod", "daemonset/web"); err != nil {
		return err
	}
	if _, err := s.Do(ctx, s.Local, "kubectl", "delete", "--wait=false", "pods", "-l", "step="+modesLabel); err != nil {
		return err
	}
	if _, err := s.Await(ctx, 3*time.Minute, "the pods are gone", equals(""), s.Local, "kubectl", "get", "pods", "-o", "name"); err != nil {
		return err
	}
	if _, err := s.Await(ctx, time.Minute, "the m5.large has no VLAN link and no rule of a strict pod", equals(""), s.inside(s.node), "sh", "-c",
		"ip -br link show type vlan; ip -6 rule | grep '^10:'; true"); err != nil {
		return err
	}
	gone := append([]string{s.green.ip, s.later.ip, s.blue.ip, s.red.ip, s.web[s.node.Hostname()]}, s.torn...)
	_, err := s.Await(ctx, time.Minute, "nor a route to one of the pods", func(o Output) error {
		for line := range strings.Lines(o.Stdout) {
			if f := strings.Fields(line); len(f) > 0 && slices.Contains(gone, f[0]) {
				return fmt.Errorf("it has %q", line)
			}
		}
		return nil
	}, s.inside(s.node), "ip", "-6", "route", "show", "table", "all")
	return err
}

// permitted reads the cloud's audit log: the agents and the controller called EC2 with the nodes' role.
func (s *ipv6Walk) permitted(ctx context.Context) error {
	_, err := s.Await(ctx, time.Minute, "no call of EC2 was refused, and the prefixes were asked for once for each node", func(o Output) error {
		if n := strings.Count(o.Stdout, `"eventName":"AssignIpv6Addresses"`); n != 2 {
			return fmt.Errorf("AssignIpv6Addresses was called %d times", n)
		}
		return lacks("UnauthorizedOperation")(o)
	}, s.Local, "grep", "-E", "UnauthorizedOperation|AssignIpv6Addresses", s.lab.AuditLog())
	return err
}
