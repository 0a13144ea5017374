package endstate

import (
	"fmt"
	"regexp"
	"strings"
)

// token finds what is different in each run: ids of EC2, MAC addresses, an instance's host name, IPv4 addresses.
var token = regexp.MustCompile(`\b(?:i|eni|sg)-[0-9a-f]{17}\b|\b(?:[0-9a-f]{2}:){5}[0-9a-f]{2}\b|\bip(?:-\d+){4}\.[a-z0-9-]+\.compute\.internal\b|\b\d+(?:\.\d+){3}\b`)

// names are the stable names of what is different in each run. What has none stays as it is, so that an id or address
// that nobody knows is seen as a difference.
type names map[string]string

// in replaces every name in a text.
func (n names) in(s string) string {
	return token.ReplaceAllStringFunc(s, func(t string) string {
		if v, ok := n[t]; ok {
			return v
		}
		return t
	})
}

// of is the name of one id.
func (n names) of(id string) string {
	if v, ok := n[id]; ok {
		return v
	}
	return id
}

// name finds a stable name for each id and address of the state.
func (s *state) name() names {
	n := names{}
	for _, i := range s.instances {
		n[i.InstanceID] = i.name()
	}
	for _, e := range s.netifs {
		name := "detached:" + n.in(e.Description)
		if e.Attachment != nil {
			name = fmt.Sprintf("eni:%s/%d", n.of(e.Attachment.InstanceID), e.Attachment.DeviceIndex)
		}
		n[e.NetworkInterfaceID] = name
		n[e.MacAddress] = "mac(" + name + ")"
		for _, a := range e.PrivateIPAddresses {
			if !a.Primary {
				n[a.PrivateIPAddress] = "secondary(" + name + ")"
				continue
			}
			n[a.PrivateIPAddress] = "ip(" + name + ")"
			if e.Attachment != nil && e.Attachment.DeviceIndex == 0 {
				n["ip-"+strings.ReplaceAll(a.PrivateIPAddress, ".", "-")+".us-west-2.compute.internal"] = "host:" + n.of(e.Attachment.InstanceID)
			}
		}
	}
	for _, g := range s.groups {
		n[g.GroupID] = "sg:" + g.GroupName
	}
	for _, o := range s.objects {
		// Which of the addresses a pod has depends on who came first, so they are named by the pod.
		if o.Kind == "Pod" && !o.Spec.HostNetwork && o.Status.PodIP != "" {
			n[o.Status.PodIP] = "ip(" + podName(o) + ")"
		}
	}
	return n
}

// podName is a pod's name without what is random in it.
func podName(o object) string {
	for _, key := range []string{"k8s-app", "app"} {
		if v := o.Metadata.Labels[key]; v != "" {
			return "pod:" + v
		}
	}
	return "pod:" + o.Metadata.Name
}
