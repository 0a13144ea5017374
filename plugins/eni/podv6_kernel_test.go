//go:build kernel

package eni

import (
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// DISABLE_POD_V6: applications that can't live beside IPv6 find none, not even on links that come later.
func TestPodsHaveNoIPv6WhereItIsTurnedOff(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	n.config["disablePodIPv6"] = true
	n.agent.set(goldenPod, regularReply(regularIP, 254))
	pod := nstest.New(t)
	for _, key := range []string{"all", "default", "lo"} {
		if was := pod.ReadSysctl(t, "ipv6/conf/"+key+"/disable_ipv6"); was != "0" {
			t.Fatalf("IPv6 of a new namespace is off by itself: %s=%s", key, was)
		}
	}
	host := n.host.ReadSysctl(t, "ipv6/conf/all/disable_ipv6")
	s := newSandbox("sandbox-1", goldenPod, pod)
	if _, err := n.add("1.1.0", s); err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"all", "default", "lo", "eth0"} {
		if got := pod.ReadSysctl(t, "ipv6/conf/"+key+"/disable_ipv6"); got != "1" {
			t.Errorf("in the pod disable_ipv6 of %s is %s, want 1", key, got)
		}
	}
	links, err := pod.Handle.LinkList()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if all, err := pod.Handle.AddrList(l, netlink.FAMILY_V6); err != nil || len(all) > 0 {
			t.Errorf("%s of the pod has the IPv6 addresses %v, %v", l.Attrs().Name, all, err)
		}
	}
	if got := n.host.ReadSysctl(t, "ipv6/conf/all/disable_ipv6"); got != host {
		t.Errorf("the host's was %s and is %s", host, got)
	}
	wantPodSide(t, n.host, pod, "eni"+goldenHash, regularIP)
	n.mustDel(s)
	n.wantClean()
}
