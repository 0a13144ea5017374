//go:build lab

package demo

import (
	"context"
	"maps"
	"strings"

	"github.com/branchline-cni/branchline/lab/kube"
)

// pathPods brings a strict pod of the table of paths, the regular ones and the Services to the cluster.
func (s *ipv6Walk) pathPods(ctx context.Context) error {
	o, err := s.Do(ctx, s.Local, "aws", "ec2", "create-security-group", "--group-name", "PATHS_SG", "--description", "of the pods of the table of paths",
		"--vpc-id", s.lab.Network.VPCID, "--query", "GroupId", "--output", "text")
	if err != nil {
		return err
	}
	group := strings.TrimSpace(o.Stdout)
	// Nodes call the pods, and these the nodes' regular ones.
	for to, from := range map[string]string{group: s.lab.Network.NodeGroupID, s.lab.Network.NodeGroupID: group} {
		if err := s.authorize(ctx, to, "tcp", "8100-8199", "--source-group", from); err != nil {
			return err
		}
	}
	node := s.node.Hostname()
	manifest := policyYAML(modesLabel, modesLabel, group) +
		listenYAML(strictPod, node, false, true, hostPortYAML(strictPod)) + listenYAML(regularPod, node, false, false, hostPortYAML(regularPod)) +
		listenYAML(regularTwin, node, false, false, "") + listenYAML(farPod, s.small.Hostname(), false, false, "") +
		serviceYAML(regularPod) + serviceYAML(regularTwin) + serviceYAML(farPod)
	for _, pod := range ipv6Endpoints {
		manifest += nodePortsYAML(pod)
	}
	return s.apply(ctx, "paths", manifest)
}

// ipv6Endpoints are those of the table of paths that there are in IPv6 clusters.
var ipv6Endpoints = []string{regularPod, standardPod, strictPod}

// regularTwin is another regular pod of the node.
const regularTwin = "regular-2"

// paths plays the table of paths, in each of kube-proxy's modes, now that the mode of new branch pods is the standard one.
func (s *ipv6Walk) paths(ctx context.Context) error {
	if err := s.apply(ctx, "paths-standard", listenYAML(standardPod, s.node.Hostname(), false, true, hostPortYAML(standardPod))); err != nil {
		return err
	}
	p := &pathsWalk{walk: s.walk, endpoints: ipv6Endpoints, regular: [2]string{regularPod, regularTwin}, address: map[string]string{hostPod: s.node.IPv6.String()}}
	ready := map[string]string{farPod: "true", regularTwin: "true"}
	for _, pod := range ipv6Endpoints {
		ready[pod] = "true"
	}
	if err := s.awaitListening(ctx, "a pod of each kind runs", ready, p.address); err != nil {
		return err
	}
	for pod := range maps.Keys(ready) {
		s.torn = append(s.torn, p.address[pod])
	}
	var err error
	if p.clusterIP, err = s.clusterIPs(ctx); err != nil {
		return err
	}
	return p.proxies(ctx, kube.ProxyModes...) // it has run in the first until now
}
