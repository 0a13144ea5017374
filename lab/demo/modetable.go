package demo

import (
	"fmt"
	"strings"
)

// modeRow is one row of the table in docs/modes.md: some traffic of a branch pod, and what applies to it in each mode.
// The walk-through shows each row, by flows or by a claim of its own; a test compares the rows with the document's.
type modeRow struct {
	traffic          string
	strict, standard way
	// flows are conversations that show the row for a branch pod and its twin, another pod of the same mode.
	flows func(pod, twin string) []flow
	// claim is what shows the row where there are no flows.
	claim string
}

// way says whose security groups a packet passes on its way.
type way struct {
	out, in string // egress rules of whose groups, ingress rules of whose groups
	branch  bool   // whether it passes the pod's branch ENI
	// lost is set where packets or their answers leave by an ENI that doesn't own their source: EC2 drops them there.
	lost bool
}

// Whose groups.
const (
	nobody       = "none"
	thePod       = "the pod's"
	theOther     = "the other pod's"
	theNode      = "the node's"
	theOtherNode = "the other node's"
	itsENI       = "its ENI's"
	controlPlane = "the control plane's"
)

// local is the way of what passes no ENI.
var local = way{out: nobody, in: nobody}

// lost is the way of what gets nowhere.
var lost = way{out: nobody, in: nobody, lost: true}

func passing(out, in string) way { return way{out: out, in: in, branch: true} }

// Actors of flows. The first nine are pods: two branch pods of each mode, regular ones and ones in the host's network.
const (
	strictPod    = "strict"
	strictTwin   = "strict-2"
	standardPod  = "standard"
	standardTwin = "standard-2"
	regularPod   = "regular"   // on the branch pods' node
	secondaryPod = "secondary" // on that node, too, with an address of a secondary ENI
	hostPod      = "host"
	farPod       = "far" // on the other node
	farHostPod   = "far-host"

	database    = "database" // an ENI of the VPC with groups of its own
	apiServer   = "api-server"
	outside     = "outside" // an address that is not the VPC's
	nodeLocal   = "node-local-dns"
	podIdentity = "pod-identity"
	clusterDNS  = "cluster-dns"
)

// flow is a conversation between two actors that is tried at several ports.
type flow struct {
	from, to string
	// service is the Service that is called in the place of the actor, if any.
	service string
	// caller calls a port of the node, nodePort for the first of the flow's ports, and the node speaks for it then.
	caller   string
	nodePort uint16
	ports    ports
	// query is a DNS query over UDP in the place of a TCP connection.
	query bool
	// unanswered is true where nobody is there that could answer.
	unanswered bool
}

// ports are those of a flow: the groups let the first one through; the second one they don't let out, the third one they
// don't let in. 0: not tried.
type ports struct{ allowed, notOut, notIn uint16 }

var (
	direct    = ports{8101, 8201, 8301}
	byService = ports{8102, 8202, 8302}
	byNode    = ports{8103, 8203, 8303}
)

// Ports of the node by which a pod is called: the first of its Service's with externalTrafficPolicy Cluster, the one with
// Local, and the pod's hostPort. Those of the Services are of the lowest 86 of the range, which the API server keeps for ports that
// are chosen: it gives them to no Service that names none.
type nodePorts struct{ cluster, local, host uint16 }

var nodePortsOf = map[string]nodePorts{
	strictPod: {30000, 30010, 8190}, standardPod: {30020, 30030, 8191}, regularPod: {30040, 30050, 8192}, secondaryPod: {30060, 30070, 8193},
}

func to(pod, target string) []flow { return []flow{{from: pod, to: target, ports: direct}} }

func through(pod, service string) []flow {
	return []flow{{from: pod, to: service, service: service, ports: byService}}
}

// rowOfDNS has no ports to refuse: it is about UDP, by a Service, where the rows of other pods are about TCP.
const rowOfDNS = "branch pod → the cluster's DNS, CoreDNS on another node"

// Claims that show rows for which there are no flows.
const (
	claimMetadata     = "metadata is asked for by the branch ENI in strict mode and by the node's in standard mode, and its answer ends at the node, by its hop limit"
	claimProbes       = "kubelet's TCP and HTTP probes pass node's and pod's groups in strict mode, and none in standard mode"
	claimKubeletLocal = "BRANCHLINE_KUBELET_LOCAL keeps the kubelet's probes of a strict pod on the node, and no other process's packets"
	claimExec         = "exec probes and kubectl exec reach pods of both modes: they enter the pod on its node"
)

var modeTable = []modeRow{
	{
		traffic: "branch pod → regular pod of its node",
		strict:  passing(thePod, theNode), standard: local,
		flows: func(pod, _ string) []flow { return to(pod, regularPod) },
	}, {
		traffic: "branch pod → regular pod of another node",
		strict:  passing(thePod, theOtherNode), standard: passing(thePod, theOtherNode),
		flows: func(pod, _ string) []flow { return to(pod, farPod) },
	}, {
		traffic: "branch pod → strict branch pod of its node",
		strict:  passing(thePod, theOther), standard: passing(thePod, theOther),
		flows: func(pod, _ string) []flow { return to(pod, strictTwin) },
	}, {
		traffic: "branch pod → standard branch pod of its node",
		strict:  passing(thePod, theOther), standard: local,
		flows: func(pod, _ string) []flow { return to(pod, standardTwin) },
	}, {
		traffic: "branch pod → other address of the VPC: a database, a branch pod of another node",
		strict:  passing(thePod, itsENI), standard: passing(thePod, itsENI),
		flows: func(pod, _ string) []flow { return to(pod, database) },
	}, {
		traffic: "branch pod → its node's own address",
		strict:  passing(thePod, theNode), standard: local,
		flows: func(pod, _ string) []flow { return to(pod, hostPod) },
	}, {
		traffic: "branch pod → another node's address",
		strict:  passing(thePod, theOtherNode), standard: passing(thePod, theOtherNode),
		flows: func(pod, _ string) []flow { return to(pod, farHostPod) },
	}, {
		traffic: "branch pod → ClusterIP, endpoint on its node",
		strict:  passing(thePod, theNode), standard: local,
		flows: func(pod, _ string) []flow { return through(pod, regularPod) },
	}, {
		traffic: "branch pod → ClusterIP, endpoint on another node",
		strict:  passing(thePod, theOtherNode), standard: passing(thePod, theOtherNode),
		flows: func(pod, _ string) []flow { return through(pod, farPod) },
	}, {
		traffic: rowOfDNS,
		strict:  passing(thePod, theOtherNode), standard: passing(thePod, theOtherNode),
		flows: func(pod, _ string) []flow {
			return []flow{{from: pod, to: clusterDNS, service: clusterDNS, query: true, ports: ports{allowed: 53}}}
		},
	}, {
		traffic: "branch pod → the API server",
		strict:  passing(thePod, controlPlane), standard: passing(thePod, controlPlane),
		flows: func(pod, _ string) []flow {
			return []flow{
				{from: pod, to: apiServer, service: apiServer, ports: ports{allowed: 6443}},
				{from: pod, to: apiServer, ports: ports{notOut: direct.notOut, notIn: direct.notIn}},
			}
		},
	}, {
		traffic: "branch pod → NodeLocal DNS (169.254.20.10)",
		strict:  local, standard: local,
		flows: func(pod, _ string) []flow {
			return append(to(pod, nodeLocal), flow{from: pod, to: nodeLocal, query: true, ports: ports{allowed: 53}})
		},
	}, {
		traffic: "branch pod → EKS Pod Identity (169.254.170.23)",
		strict:  local, standard: local,
		flows: func(pod, _ string) []flow { return to(pod, podIdentity) },
	}, {
		traffic: "branch pod → instance metadata (169.254.169.254)",
		strict:  passing(nobody, nobody), standard: local,
		claim: claimMetadata,
	}, {
		traffic: "branch pod → outside the VPC",
		strict:  passing(thePod, nobody), standard: way{out: theNode, in: nobody},
		flows: func(pod, _ string) []flow {
			f := flow{from: pod, to: outside, ports: ports{direct.allowed, direct.notOut, 0}, unanswered: true}
			if pod == standardPod { // it has the node's address there
				f.caller, f.from = pod, hostPod
			}
			return []flow{f}
		},
	}, {
		traffic: "regular pod of its node → branch pod",
		strict:  passing(theNode, thePod), standard: local,
		flows: func(pod, _ string) []flow { return to(regularPod, pod) },
	}, {
		traffic: "regular pod of another node → branch pod",
		strict:  passing(theOtherNode, thePod), standard: passing(theOtherNode, thePod),
		flows: func(pod, _ string) []flow { return to(farPod, pod) },
	}, {
		traffic: "hostNetwork process of its node → branch pod",
		strict:  passing(theNode, thePod), standard: local,
		flows: func(pod, _ string) []flow { return to(hostPod, pod) },
	}, {
		traffic: "another node → branch pod",
		strict:  passing(theOtherNode, thePod), standard: passing(theOtherNode, thePod),
		flows: func(pod, _ string) []flow { return to(farHostPod, pod) },
	}, {
		traffic: "other address of the VPC → branch pod",
		strict:  passing(itsENI, thePod), standard: passing(itsENI, thePod),
		flows: func(pod, _ string) []flow { return to(database, pod) },
	}, {
		traffic: "NodePort called from elsewhere, `externalTrafficPolicy: Cluster`: the node → branch pod",
		strict:  passing(theNode, thePod), standard: local,
		flows: func(pod, _ string) []flow {
			return []flow{{from: hostPod, to: pod, caller: farPod, nodePort: nodePortsOf[pod].cluster, ports: byNode}}
		},
	}, {
		traffic: "NodePort called from elsewhere, `externalTrafficPolicy: Local`; `hostPort`: the node → branch pod",
		strict:  lost, standard: local,
		flows: func(pod, _ string) []flow {
			return []flow{
				{from: farPod, to: pod, caller: farPod, nodePort: nodePortsOf[pod].local, ports: ports{allowed: byNode.allowed}},
				{from: farPod, to: pod, caller: farPod, nodePort: nodePortsOf[pod].host, ports: ports{allowed: byNode.allowed}},
			}
		},
	}, {
		traffic: "kubelet's TCP and HTTP probes",
		strict:  passing(theNode, thePod), standard: local,
		claim: claimProbes,
	}, {
		traffic: "the same with `BRANCHLINE_KUBELET_LOCAL`",
		strict:  local, standard: local,
		claim: claimKubeletLocal,
	}, {
		traffic: "exec probes, `kubectl exec`",
		strict:  local, standard: local,
		claim: claimExec,
	},
}

// markdown is the table as docs/modes.md has it.
func markdown(rows []modeRow) string {
	var b strings.Builder
	b.WriteString("| Traffic | strict: out of | into | branch ENI | standard: out of | into | branch ENI |\n|---|---|---|---|---|---|---|\n")
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s | %s |\n", r.traffic, r.strict, r.standard)
	}
	return b.String()
}

func (w way) String() string {
	if w.lost {
		return "not reached | – | –"
	}
	branch := "no"
	if w.branch {
		branch = "yes"
	}
	return w.out + " | " + w.in + " | " + branch
}
