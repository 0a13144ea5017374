package ipamd

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/test/truth"
)

// inScene plays a case on an instance with one network card that keeps one address ahead, and no other for longer than it must.
func inScene(t *testing.T, play func(t *testing.T, s *stage, cloud *plain)) {
	inSceneOf(t, newPlain, map[string]string{"WARM_IP_TARGET": "1", "BRANCHLINE_KEEP_SURPLUS": "0"}, play)
}

func inSceneOf(t *testing.T, of func(*stage) provider, env map[string]string, play func(t *testing.T, s *stage, cloud *plain)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		s := newStage(t, dir, of)
		defer s.over()
		maps.Copy(s.env, env)
		s.settle()
		play(t, s, s.cloud.(*plain))
	})
}

// run runs pods, one after the other.
func (s *stage) run(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.create(name)
		s.add(name)
		s.done()
		if s.living(name) == nil {
			s.t.Fatalf("pod %s has no address: %v", name, s.sandboxes[name].err)
		}
	}
	s.pass(5 * time.Second)
}

// ends has pods end.
func (s *stage) ends(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.del(s.living(name), true)
	}
}

// come has pods ask, a second apart, and does not wait for their answers: what they are told meanwhile is compared with what
// the VPC has.
func (s *stage) come(names ...string) {
	s.t.Helper()
	for _, name := range names {
		s.create(name)
		s.add(name)
		s.pass(time.Second)
	}
}

// TestP5P50NothingIsGivenBackThatTheDiskDoesNotSay: the disk takes nothing at the moment when addresses are to be given back,
// and the next agent starts while IMDS shows them yet.
func TestP5P50NothingIsGivenBackThatTheDiskDoesNotSay(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		s.run("a0", "a1", "a2", "a3")
		had := cloud.enis()["eni-1"].Addresses
		s.ends("a1", "a2", "a3")
		s.pass(s.told.CoolDown)
		s.setDisk(syscall.ENOSPC)
		s.pass(2 * s.told.CoolDown)
		if now := cloud.enis()["eni-1"].Addresses; !slices.Equal(now, had) {
			t.Errorf("EC2 was asked to take back %v of %v, which no disk says", now, had)
		}
		s.kill()
		s.setDisk(nil)
		cloud.lateMetadata("", time.Minute)
		s.settle()
		s.come("b0", "b1", "b2")
		cloud.calm()
		s.pass(3 * s.told.CoolDown)
		if s.living("b0") == nil {
			t.Errorf("a pod was not given what is there: %v", s.sandboxes["b0"].err)
		}
	})
}

// TestP5P50WhatLeftOneENIAndCameToAnotherIsNotGivenAsTheFirstOnes plays one case that the random ones come to too seldom: an
// address leaves the second ENI, EC2 gives it to the first one, and the next agent starts while IMDS shows the time before
// both. What is noted of the second ENI has to outlive what is said of the first.
func TestP5P50WhatLeftOneENIAndCameToAnotherIsNotGivenAsTheFirstOnes(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		secondary := func(id string) []netip.Addr { return slices.Clone(cloud.enis()[id].Addresses[1:]) }
		var first []string // the pods of the first ENI
		for i := range truth.AddressesPer - 1 {
			first = append(first, fmt.Sprintf("a%d", i))
		}
		s.run(first...)
		s.run("b0", "b1")
		second := s.living("b0").grants[0].ENI
		if second == "eni-1" || len(secondary("eni-1")) != truth.AddressesPer-1 || len(secondary(second)) != 3 {
			t.Fatalf("the first ENI is not full, or the second has not two and one ahead: %v", cloud.enis())
		}

		// Pods of both end. What is too much then leaves the second ENI, and the first one has room again.
		cloud.lateMetadata("", 20*time.Second)
		before := secondary(second)
		s.ends(first[0], first[1], "b1")
		s.pass(2*s.told.CoolDown + 2*time.Second)
		var left []netip.Addr
		for _, a := range before {
			if !slices.Contains(secondary(second), a) {
				left = append(left, a)
			}
		}
		if len(left) == 0 || len(secondary("eni-1")) == truth.AddressesPer-1 {
			t.Fatalf("nothing left the second ENI, or the first has no room: %v", cloud.enis())
		}
		// Somebody takes what else is free below it, so that EC2 gives the first ENI just that.
		for {
			e, err := cloud.vpc.Create(0, 0, "somebody's", nil)
			if err != nil {
				t.Fatal(err)
			}
			if e.Addresses[0].Next().Compare(left[0]) >= 0 {
				if e.Addresses[0] == left[0] {
					if err := cloud.vpc.Delete(e.ID); err != nil {
						t.Fatal(err)
					}
				}
				break
			}
		}
		s.create("c0")
		s.add("c0")
		s.pass(2 * time.Second)
		came := slices.IndexFunc(left, func(a netip.Addr) bool { return slices.Contains(secondary("eni-1"), a) })
		if came < 0 {
			t.Fatalf("none of %v came to the first ENI: %v", left, cloud.enis())
		}

		s.kill()
		cloud.lateMetadata("", 40*time.Second)
		s.settle()
		s.come("d0", "d1")
		cloud.calm()
		s.done()
		for _, name := range []string{"d0", "d1"} {
			if s.living(name) == nil {
				t.Errorf("pod %s has no address: %v", name, s.sandboxes[name].err)
			}
		}
	})
}

// TestP28AnENIThatEC2ShowsLateIsDeletedAllTheSame: the answer to its creation is lost, and EC2's descriptions lack it for longer than
// they are believed to.
func TestP28AnENIThatEC2ShowsLateIsDeletedAllTheSame(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		s.pass(3 * describedLate) // nothing is looked for any more
		cloud.lateDescribes(5 * describedLate)
		cloud.fail(flaw{api: "CreateNetworkInterface", kind: lost, times: 1})
		s.run(podsNamed("a", truth.AddressesPer-1)...) // so that the one ahead needs a second ENI
		left := func() (ids []string) {
			for id, e := range cloud.enis() {
				if e.Device < 0 {
					ids = append(ids, id)
				}
			}
			return ids
		}
		s.pass(3 * describedLate)
		if n := len(left()); n != 1 {
			t.Fatalf("%d ENIs are of nobody, not the one whose creation was not answered: %v", n, cloud.enis())
		}
		cloud.calm()
		s.pass(2 * sweepAgain)
		if ids := left(); len(ids) > 0 {
			t.Errorf("%v are left behind", ids)
		}
	})
}

// TestP50WhatIMDSLackedOnceAndShowsAgainIsNotGiven: IMDS is nearly two minutes late, and addresses were this ENI's for less. It lacks them
// when EC2 has just taken them back, and shows them after that.
func TestP50WhatIMDSLackedOnceAndShowsAgainIsNotGiven(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, cloud *plain) {
		s.run("a0")
		s.pass(3 * time.Minute)
		count := func() int { return len(cloud.enis()["eni-1"].Addresses) }
		before := count()
		cloud.lateMetadata("eni-1", 110*time.Second)
		given := time.Now()
		s.run("a1", "a2", "a3")
		s.ends("a1", "a2", "a3")
		for count() > before { // until EC2 has them back
			if time.Since(given) > 105*time.Second {
				t.Fatalf("nothing was given back in time: %v", cloud.enis())
			}
			s.pass(time.Second)
		}
		t.Logf("given back after %s: %v", time.Since(given), cloud.enis())
		for time.Since(given) < 140*time.Second {
			s.running().a.links.Fire() // IMDS is read again
			s.pass(3 * time.Second)
			if since := time.Since(given); since > 112*time.Second && since < 116*time.Second {
				s.come("b1", "b2", "b3")
			}
		}
		cloud.calm()
		s.pass(10 * time.Minute)
	})
}

// TestP5NothingEndsBecauseTheAPIServerIsAway: a sandbox is torn down without the agent, its pod was replaced, and nobody can say any
// more whether it is over.
func TestP5NothingEndsBecauseTheAPIServerIsAway(t *testing.T) {
	inScene(t, func(t *testing.T, s *stage, _ *plain) {
		s.run("a0", "a1")
		old := s.living("a0")
		s.del(old, false)
		s.create("a0")
		s.settle()
		s.setAPI(false)
		s.pass(time.Hour)
		held := func() bool {
			return slices.ContainsFunc(s.running().a.store.View().Allocations, func(al store.Allocation) bool { return al.ContainerID == old.id })
		}
		if !held() {
			t.Error("what it held was freed while nobody could be asked")
		}
		s.must("a0") // which the agent had seen
		s.setAPI(true)
		s.pass(5 * time.Minute)
		if held() {
			t.Error("it is over, and what it held is not free")
		}
	})
}

// TestAnIPv6PrefixThatMovesToThePrimaryENIIsAskedForWithPauses: EC2 gives the primary ENI what was another's, and IMDS shows it on that
// one for two minutes yet.
func TestAnIPv6PrefixThatMovesToThePrimaryENIIsAskedForWithPauses(t *testing.T) {
	inSceneOf(t, newPlainIPv6, ipv6Node, func(t *testing.T, s *stage, cloud *plain) {
		if err := cloud.bring(); err != nil {
			t.Fatal(err)
		}
		s.pass(5 * time.Minute)
		prefix := func(eni string) netip.Prefix { return cloud.enis()[eni].IPv6Prefixes[0] }
		first, moves := prefix("eni-1"), prefix("eni-2")
		cloud.lateMetadata("eni-2", 110*time.Second)
		for _, p := range []netip.Prefix{first, moves} {
			s.told.Taken(p, time.Now().Add(nobodyKnows))
		}
		e, err := cloud.vpc.Create(0, 0, "somebody's", nil)
		if err != nil {
			t.Fatal(err)
		}
		err = cloud.vpc.UnassignIPv6("eni-1", first)
		if err == nil {
			_, err = cloud.vpc.AssignIPv6(e.ID, 0, 1) // the lowest one that is free
		}
		if err == nil {
			err = cloud.vpc.UnassignIPv6("eni-2", moves)
		}
		if err != nil {
			t.Fatal(err)
		}
		s.pass(nobodyKnows) // how often EC2 is asked meanwhile is looked at
		if len(cloud.enis()["eni-1"].IPv6Prefixes) != 1 || prefix("eni-1") != moves {
			t.Fatalf("the prefix did not move: %v", cloud.enis())
		}
		s.run("a0")
		if a := s.living("a0").grants[0].Address; !moves.Contains(a) {
			t.Errorf("a pod has %s, which is not of %s", a, moves)
		}
	})
}
