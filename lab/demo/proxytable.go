package demo

import (
	"fmt"
	"strings"

	"github.com/branchline-cni/branchline/lab/kube"
)

// pathRow is one row of the table in docs/node-network.md: a path by which pods are reached, or by which they reach others,
// where kube-proxy or portmap chooses the destination. The walk-through plays each row in each of kube-proxy's modes for an
// endpoint of each kind; a test compares the rows with the document's.
type pathRow struct {
	path string
	// modes of kube-proxy that the row is about.
	modes []kube.ProxyMode
	// seenAs is whom the called pod sees, by endpoints' order.
	seenAs [len(endpoints)]caller
	// call is how the row is played for an endpoint.
	call func(endpoint, neighbour string) call
}

// endpoints are the pods that the table is about, one of each kind, all on the m5.large. In IPv6 clusters the one with an address
// of a secondary ENI does not exist: their prefix is the primary one's.
var endpoints = [...]string{regularPod, secondaryPod, standardPod, strictPod}

// caller is whose address the called pod sees.
type caller string

const (
	theCaller    caller = "the caller"
	asTheNode    caller = "the node"
	itself       caller = "the pod itself"
	notReachable caller = "not reached"
)

// call is one connection: who makes it, to which Service's ClusterIP or else to which port of the node, and who answers.
type call struct {
	from, to string
	service  bool
	port     uint16
}

func (c call) String() string {
	if c.service {
		return fmt.Sprintf("%s > Service of %s", c.from, c.to)
	}
	return fmt.Sprintf("%s > port %d of the node > %s", c.from, c.port, c.to)
}

func all(c caller) [len(endpoints)]caller { return [...]caller{c, c, c, c} }

var (
	everyMode = kube.ProxyModes
	inKernel  = []kube.ProxyMode{kube.ProxyNFTables, kube.ProxyIPTables}
	onlyIPVS  = []kube.ProxyMode{kube.ProxyIPVS}
)

func toNode(port func(nodePorts) uint16) func(string, string) call {
	return func(endpoint, _ string) call {
		return call{from: farPod, to: endpoint, port: port(nodePortsOf[endpoint])}
	}
}

func elsewhere(endpoint, _ string) call {
	return call{from: endpoint, to: farPod, service: true, port: byService.allowed}
}

func onItsNode(endpoint, neighbour string) call {
	return call{from: endpoint, to: neighbour, service: true, port: byService.allowed}
}

var pathTable = []pathRow{
	{
		path:  "port of the node: NodePort, LoadBalancer (targets of type `instance`), `externalTrafficPolicy: Cluster`",
		modes: everyMode, seenAs: all(asTheNode), call: toNode(func(p nodePorts) uint16 { return p.cluster }),
	}, {
		path:  "the same, `externalTrafficPolicy: Local`",
		modes: everyMode, seenAs: [...]caller{theCaller, theCaller, theCaller, notReachable}, call: toNode(func(p nodePorts) uint16 { return p.local }),
	}, {
		path:  "port of the node: `hostPort`",
		modes: everyMode, seenAs: [...]caller{theCaller, theCaller, theCaller, notReachable}, call: toNode(func(p nodePorts) uint16 { return p.host }),
	}, {
		path:  "from the pod to a ClusterIP, endpoint on another node",
		modes: inKernel, seenAs: all(itself), call: elsewhere,
	}, {
		path:  "from the pod to a ClusterIP, endpoint on another node",
		modes: onlyIPVS, seenAs: [...]caller{itself, itself, notReachable, notReachable}, call: elsewhere,
	}, {
		path:  "from the pod to a ClusterIP, endpoint on its node",
		modes: inKernel, seenAs: all(itself), call: onItsNode,
	}, {
		path:  "from the pod to a ClusterIP, endpoint on its node",
		modes: onlyIPVS, seenAs: [...]caller{itself, itself, itself, notReachable}, call: onItsNode,
	},
}

// pathsMarkdown is the table as docs/node-network.md has it.
func pathsMarkdown(rows []pathRow) string {
	var b strings.Builder
	b.WriteString("| Path | kube-proxy | regular pod, primary ENI | regular pod, secondary ENI | branch pod, `standard` | branch pod, `strict` |\n|---|---|---|---|---|---|\n")
	for _, r := range rows {
		modes := "every mode"
		if len(r.modes) < len(everyMode) {
			var names []string
			for _, m := range r.modes {
				names = append(names, "`"+string(m)+"`")
			}
			modes = strings.Join(names, ", ")
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", r.path, modes, r.seenAs[0], r.seenAs[1], r.seenAs[2], r.seenAs[3])
	}
	return b.String()
}
