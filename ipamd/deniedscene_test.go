package ipamd

import (
	"fmt"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/rpc"
	"github.com/branchline-cni/branchline/test/truth"
)

// podsNamed are the names of n pods.
func podsNamed(with string, n int) (out []string) {
	for i := range n {
		out = append(out, fmt.Sprintf("%s%d", with, i))
	}
	return out
}

// TestP49AnENIThatCanNotGoKeepsNoPodFromAnAddress: the role may not detach ENIs, or EC2 does not, and one is on its way out.
func TestP49AnENIThatCanNotGoKeepsNoPodFromAnAddress(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		first := podsNamed("a", truth.AddressesPer-1)
		s.run(first...)
		s.run("b0", "b1")
		second := s.living("b0").grants[0].ENI
		if second == "eni-1" {
			t.Fatalf("all are on the first ENI: %v", cloud.enis())
		}
		s.ends(first[1:]...)
		s.pass(20 * time.Minute)
		cloud.fail(flaw{api: "DetachNetworkInterface", kind: refused, code: "UnauthorizedOperation", times: 100000})
		s.ends("b0", "b1")
		s.pass(20 * time.Minute)
		if r := s.running().a.store.View().Retiring; len(r) != 1 || r[0] != second {
			t.Fatalf("%v is on its way out, not %s: %v", r, second, cloud.enis())
		}
		s.run(podsNamed("c", 5)...)
		for _, name := range podsNamed("c", 5) {
			if g := s.living(name).grants[0]; g.ENI != "eni-1" {
				t.Errorf("%s has an address of an ENI that is to go: %v", name, g)
			}
		}
		cloud.calm()
		s.pass(5 * time.Minute)
		if _, there := cloud.enis()[second]; there {
			t.Errorf("%s has not gone, though it may: %v", second, cloud.enis())
		}
	})
}

// TestAnAttachmentThatIsRefusedIsTriedLessAndLess: the ENI that was made for it goes each time, which is no success.
func TestAnAttachmentThatIsRefusedIsTriedLessAndLess(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		cloud.fail(flaw{api: "AttachNetworkInterface", kind: refused, code: "UnauthorizedOperation", times: 100000})
		s.run(podsNamed("a", truth.AddressesPer-1)...) // the one ahead needs a second ENI
		const minutes = 20
		s.pass(minutes * time.Minute)
		for range 10 { // one may be on its way at this very moment
			if len(cloud.enis()) > 1 {
				s.pass(10 * time.Second)
			}
		}
		if n := len(cloud.enis()); n != 1 {
			t.Errorf("%d ENIs are left: %v", n, cloud.enis())
		}
		e, err := cloud.vpc.Create(0, 0, "somebody's", nil)
		if err != nil {
			t.Fatal(err)
		}
		var made int
		if _, err := fmt.Sscanf(e.ID, "eni-%d", &made); err != nil {
			t.Fatal(err)
		}
		if made > 4*minutes {
			t.Errorf("%d ENIs were made in vain within %d minutes", made-2, minutes)
		}
	})
}

// TestP50WhatMayHaveGoneIsNotGivenWhereEC2WillNotSay: the answer to a give-back is lost, and the role may not describe what is left.
func TestP50WhatMayHaveGoneIsNotGivenWhereEC2WillNotSay(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		s.run("a0", "a1", "a2", "a3")
		cloud.fail(flaw{api: "UnassignPrivateIpAddresses", kind: lost, times: 1})
		cloud.fail(flaw{api: "DescribeNetworkInterfaces", kind: refused, code: "UnauthorizedOperation", times: 100000})
		cloud.lateMetadata("", time.Minute)
		s.ends("a1", "a2", "a3")
		s.pass(2*s.told.CoolDown + 5*time.Second)
		if l := s.running().a.store.View().Leaving; len(l) == 0 {
			t.Fatalf("nothing is on its way out: %v", cloud.enis())
		}
		s.come("b0", "b1", "b2", "b3")
		s.done()
	})
}

// TestAStaticPodIsKnownByTheKubeletsUID: the API object's changes when somebody deletes the mirror pod, and the pod runs on.
func TestAStaticPodIsKnownByTheKubeletsUID(t *testing.T) {
	for _, c := range []struct{ asked, api, mirrorOf, want string }{
		{"", "api", "", "api"}, {"", "api", "kubelet", "kubelet"}, {"runtime", "api", "kubelet", "runtime"},
	} {
		if got := identity(&rpc.Pod{Uid: c.asked}, kube.Pod{UID: c.api, MirrorOf: c.mirrorOf}); got != c.want {
			t.Errorf("%+v: %s", c, got)
		}
	}
	if got := identity(nil, kube.Pod{UID: "api", MirrorOf: "kubelet"}); got != "kubelet" {
		t.Errorf("without a pod: %s", got)
	}
}
