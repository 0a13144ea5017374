package hostnet

import "net/netip"

// Priorities of rules and numbers of tables. Those of upstream that other programs know are kept.
const (
	// LocalTable is the kernel's. Its rule is born at LocalPriority. Strict branch pods need it behind their own
	// rules (StrictPriority), so that what one pod of the node sends to another passes the VLAN link: there it moves to
	// LocalPriorityStrict.
	LocalTable          = 255
	LocalPriority       = 0
	LocalPriorityStrict = 20
	// NodeLocalPriority is for destinations that strict pods reach on this node, past their VLAN, and for their answers.
	NodeLocalPriority = 5
	// KubeletPriority is for the kubelet's own connections to strict pods where they are to stay on the node.
	KubeletPriority = 6
	// SkipPriority sends all that comes from no branch link past the rules of strict pods, which are two per pod.
	SkipPriority = 8
	// StrictPriority is where the CNI executable puts the rules of strict pods.
	StrictPriority = 10
	// PodsPriority is the rule that looks up the pods of this node; a miss falls through to the next rule.
	PodsPriority = 512
	// PrimaryPriority is that of the primary ENI's mark. What belongs to its connections leaves by it, whoever sends it: so
	// the rule is ahead of those that a pod's address may have at MarkPriority, which are upstream's on a node that was
	// taken over.
	PrimaryPriority = 1534
	// ExternalPriority is for destinations that are reached by the main table, whichever ENI the pod has.
	ExternalPriority = 1535
	// MarkPriority is one rule per other ENI: what carries its mark leaves by its table. Nothing of ours is walked behind it
	// by a regular pod's packet.
	MarkPriority = 1536
	// ENIPriority is the rule for what the node itself sends from the primary address of a secondary ENI.
	ENIPriority = 32765

	// StrictPodsTable holds one route per strict pod, by its host veth; only the rules at NodeLocalPriority and
	// KubeletPriority look it up. PodsTable holds one per regular and standard-mode pod. The CNI executable fills both.
	StrictPodsTable = 510
	PodsTable       = 511
	// MainTable is where the primary ENI's routes are.
	MainTable = 254

	// Protocol marks our rules and routes (rtm_protocol), so that only they are ever taken away.
	Protocol = 98
)

// Marks of packets. They keep clear of 0x80 (the AWS VPC CNI's), 0x2000 (portmap), 0xc000 (kube-proxy) and 0xffff0000
// (Calico), and are only ever set with their masks.
const (
	// ENIMask covers the mark of the ENI whose pod sent the packet.
	ENIMask = 0x017f
	// KubeletMark is on the kubelet's own connections, both ways.
	KubeletMark = 0x0400
	// RerouteMark is set on what IPVS forwards to have the kernel route it again, and looked at by nobody.
	RerouteMark = 0x0200
	// SourceNATMark is on the first packet of a connection that is given the primary ENI's address.
	SourceNATMark = 0x0800
	// NoBranchMark is on all that came in by another link than a branch pod's.
	NoBranchMark = 0x1000
)

// RouterIPv6 is the VPC router's address on each ENI, and so on each branch ENI's VLAN.
var RouterIPv6 = netip.MustParseAddr("fe80:ec2::1")
