package endstate

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// ours are the components whose events are compared. The kubelet's, the scheduler's and the controllers' own tell the
// story of a run (pulls, probes, restarts), not its end.
var ours = []string{"aws-node", "vpc-resource-controller"}

// passing are the reasons of events that say only that something had to wait: whether that was so depends on the moment
// of a look, and on kills. KubeletNotLocal depends on the kernel of the machine, for the node that is a namespace of it.
var passing = []string{"PodNotWired", "BranchENIsInUse", "WaitingForTrunk", "AddressesNotAvailable", "KubeletNotLocal"}

func (s *state) objectLines(n names) []string {
	var lines []string
	nodes := map[string]bool{}
	for _, o := range s.objects {
		nodes[o.Metadata.Name] = nodes[o.Metadata.Name] || o.Kind == "Node"
	}
	for _, o := range s.objects {
		// Kubernetes collects the pods of a node that is gone in its own time.
		if o.Kind == "Pod" && o.Spec.NodeName != "" && !nodes[o.Spec.NodeName] {
			continue
		}
		if l := s.objectLine(o, n); l != "" {
			lines = append(lines, l)
		}
	}
	slices.Sort(lines)
	// Events are repeated as often as time allows: each is said once. Nothing else appears twice.
	return slices.CompactFunc(lines, func(a, b string) bool { return a == b && strings.HasPrefix(a, "Event") })
}

func (s *state) objectLine(o object, n names) string {
	m := o.Metadata
	name := n.in(m.Name)
	if m.Namespace != "" {
		name = m.Namespace + "/" + name
	}
	going := ""
	if m.DeletionTimestamp != "" {
		going = "is being deleted"
	}
	switch o.Kind {
	case "Node":
		var labels, capacity, taints []string
		for _, k := range slices.Sorted(maps.Keys(m.Labels)) {
			labels = append(labels, k+"="+n.in(m.Labels[k]))
		}
		for _, k := range slices.Sorted(maps.Keys(o.Status.Capacity)) {
			// CPUs, memory and disk are the machine's.
			if k == "pods" || strings.Contains(k, "/") {
				capacity = append(capacity, k+"="+o.Status.Capacity[k])
			}
		}
		for _, t := range o.Spec.Taints {
			taints = append(taints, t.Key+":"+t.Effect)
		}
		return fields(o.Kind, name, going, "ready="+o.condition("Ready"), "capacity{"+strings.Join(capacity, " ")+"}",
			"taints{"+strings.Join(taints, " ")+"}", "labels{"+strings.Join(labels, " ")+"}")
	case "CNINode":
		var features []string
		for _, f := range o.Spec.Features {
			features = append(features, f.Name+"="+f.Value)
		}
		slices.Sort(features)
		return fields(o.Kind, name, going, "features{"+strings.Join(features, " ")+"}", "finalizers{"+strings.Join(m.Finalizers, " ")+"}")
	case "BranchLedger":
		var used []string
		free := 0
		for _, t := range o.Spec.Slots {
			// How many ids were ever used depends on how soon one was free again. A free one is free of all else.
			if t.State == "Free" && t.ENIID == "" && t.PodUID == "" {
				free++
				continue
			}
			used = append(used, fmt.Sprintf("%d:%s", t.VLANID, t.State))
		}
		slices.Sort(used)
		return fields(o.Kind, name, going, n.in(o.Spec.NodeName), "trunk="+n.of(o.Spec.TrunkENIID), fmt.Sprintf("capacity=%d", o.Spec.Capacity),
			fmt.Sprintf("freeSlots=%t", free > 0), "otherSlots{"+strings.Join(used, " ")+"}", fmt.Sprintf("released=%d", len(o.Status.Released)),
			"finalizers{"+strings.Join(m.Finalizers, " ")+"}")
	case "Pod":
		// Restarts are left out: a kill is one.
		return fields(o.Kind, strings.TrimSuffix(name, m.Name)+podName(o), going, o.Status.Phase, "ready="+o.condition("Ready"), podENI(m.Annotations))
	case "Event":
		if !slices.Contains(ours, o.Source.Component) || slices.Contains(passing, o.Reason) {
			return ""
		}
		return fields(o.Kind, o.Source.Component, o.InvolvedObject.Kind, o.Reason)
	case "Lease":
		if strings.HasPrefix(m.Name, "apiserver-") { // a hash of the machine's name
			name = m.Namespace + "/apiserver"
		}
		return fields(o.Kind, name, going)
	default: // SecurityGroupPolicy: that it is there
		return fields(o.Kind, name, going)
	}
}

func podENI(annotations map[string]string) string {
	if _, ok := annotations["vpc.amazonaws.com/pod-eni"]; ok {
		return "with a branch ENI"
	}
	return ""
}
