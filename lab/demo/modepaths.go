package demo

import (
	"context"
	"fmt"
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

// proxies plays the table of paths.
func (m *modesWalk) proxies(ctx context.Context) error {
	if e := m.seen.eni[m.seen.address[secondaryPod]]; e.id == "" || e.id == m.node.ENIID || e.branch {
		return fmt.Errorf("pod %s has an address of %+v, want a secondary ENI's", secondaryPod, e)
	}
	m.Seen("one regular pod has an address of the primary ENI, another one of a secondary ENI")
	p := &pathsWalk{walk: m.walk, endpoints: endpoints[:], regular: [2]string{regularPod, secondaryPod}, address: m.seen.address, clusterIP: m.clusterIP}
	// The node has run in the first mode until now, and goes on in it.
	return p.proxies(ctx, append(kube.ProxyModes[1:], kube.ProxyModes[0])...)
}
