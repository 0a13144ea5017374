package ipamd

import (
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/aws/smithy-go"

	"github.com/branchline-cni/branchline/ipamd/enis"
)

// addressesOf returns the secondary addresses of an ENI, as EC2 has them.
func (c *cloud) addressesOf(id string) (out []netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if e := c.enis[id]; e != nil {
		out = slices.Clone(e.addresses[1:])
	}
	return out
}

// assigned says whether EC2 has an address on any ENI.
func (c *cloud) assigned(a netip.Addr) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.enis {
		if slices.Contains(e.addresses[1:], a) {
			return true
		}
	}
	return false
}

// adds runs n pods and returns their addresses.
func (w *world) adds(s service, from, n int) (out []netip.Addr) {
	w.t.Helper()
	for i := range n {
		name := fmt.Sprintf("p%d", from+i)
		if err := w.api.Create(w.t.Context(), pod(name, "u-"+name)); err != nil {
			w.t.Fatal(err)
		}
		out = append(out, netip.MustParseAddr(mustAdd(w.t, s, addRequest(name, "u-"+name, name)).GetRegular().GetAddress()))
	}
	return out
}

func (w *world) dels(s service, n int) {
	w.t.Helper()
	for i := range n {
		if _, err := s.Del(w.t.Context(), delRequest(fmt.Sprintf("p%d", i))); err != nil {
			w.t.Fatal(err)
		}
	}
}

// TestATargetInAddressesIsKeptAddressByAddress: small subnets live by WARM_IP_TARGET and MINIMUM_IP_TARGET.
func TestATargetInAddressesIsKeptAddressByAddress(t *testing.T) {
	w := newWorld(t)
	w.env["WARM_IP_TARGET"], w.env["MINIMUM_IP_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "2", "3", "30"
	s, _ := w.start()
	has := func(n int) func() bool { return func() bool { return len(w.cloud.addressesOf("eni-1")) == n } }
	eventually(t, "three addresses, the minimum", has(3))
	w.adds(s, 0, 4)
	eventually(t, "two more than the four in use", has(6))
	w.dels(s, 4)
	// The cooling ones are not free: two are kept beside them until they have cooled.
	eventually(t, "all cool", func() bool { return len(s.a.store.View().Cooling) == 4 })
	if !has(6)() && !has(7)() {
		t.Errorf("%d addresses while four cool", len(w.cloud.addressesOf("eni-1")))
	}
	// What was in use a moment ago may be wanted again, and goes as time passes without that.
	eventually(t, "the minimum again", func() bool { w.pass(31 * time.Second); s.a.changed.Fire(); return has(3)() })
}

// TestP50AnAddressThatWasGivenBackIsHandedOutToNobody: IMDS shows it for a while, also to the agent's next run.
func TestP50AnAddressThatWasGivenBackIsHandedOutToNobody(t *testing.T) {
	for i := range 4 {
		lost, fresh := i%2*2, i > 1
		t.Run(fmt.Sprintf("lost answers %d, other addresses %t", lost, fresh), func(t *testing.T) {
			w := newWorld(t)
			w.env["WARM_IP_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "1", "0"
			s, stop := w.start()
			w.adds(s, 0, 5)
			eventually(t, "one more than five", func() bool { return len(w.cloud.addressesOf("eni-1")) == 6 })
			w.cloud.do(func() { w.cloud.stale, w.cloud.lost, w.cloud.fresh = true, lost, fresh })
			w.dels(s, 4)
			eventually(t, "EC2 has four back", func() bool { s.a.changed.Fire(); return len(w.cloud.addressesOf("eni-1")) == 2 })
			for run := range 2 {
				if run == 1 {
					stop()
					s, _ = w.start()
				}
				if _, err := s.a.inventory.Refresh(t.Context()); err != nil {
					t.Fatal(err)
				}
				for _, addr := range w.adds(s, 10+10*run, 3) {
					if !w.cloud.assigned(addr) {
						t.Errorf("run %d: %s was handed out and EC2 has it back", run, addr)
					}
				}
			}
			w.cloud.do(func() {
				w.cloud.enis["eni-1"].shown = nil
			})
			eventually(t, "nothing is noted as leaving any more", func() bool {
				w.pass(enis.MetadataLate) // more may have been given back since the last look
				_, err := s.a.inventory.Refresh(t.Context())
				s.a.changed.Fire()
				return err == nil && len(s.a.store.View().Leaving) == 0
			})
		})
	}
}

// TestP50AnAddressThatCameBackAndLeavesAgainIsNotTakenForGone: what EC2 said of its first leaving says nothing of the
// second one, of which the answer is lost.
func TestP50AnAddressThatCameBackAndLeavesAgainIsNotTakenForGone(t *testing.T) {
	w := newWorld(t)
	w.env["WARM_IP_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "1", "0"
	s, _ := w.start()
	has := func(n int) {
		t.Helper()
		eventually(t, fmt.Sprintf("EC2 has %d addresses", n), func() bool { s.a.changed.Fire(); return len(w.cloud.addressesOf("eni-1")) == n })
	}
	w.adds(s, 0, 5)
	has(6)
	w.cloud.do(func() { w.cloud.stale = true })
	w.dels(s, 4)
	has(2)
	w.adds(s, 10, 4) // EC2 gives the lowest addresses, so the same ones
	has(6)
	w.cloud.do(func() { w.cloud.lost, w.cloud.fresh = 1, true })
	for i := range 4 {
		if _, err := s.Del(t.Context(), delRequest(fmt.Sprintf("p%d", 10+i))); err != nil {
			t.Fatal(err)
		}
	}
	has(2)
	for _, addr := range w.adds(s, 20, 4) {
		if !slices.Contains(w.cloud.addressesOf("eni-1"), addr) {
			t.Errorf("%s was handed out and EC2 has it back", addr)
		}
	}
}

// TestAnAddressThatEC2DoesNotTakeBackServesAgain: a role without ec2:UnassignPrivateIpAddresses.
func TestAnAddressThatEC2DoesNotTakeBackServesAgain(t *testing.T) {
	w := newWorld(t)
	w.env["WARM_IP_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "1", "0"
	s, _ := w.start()
	w.adds(s, 0, 3)
	eventually(t, "one more than three", func() bool { return len(w.cloud.addressesOf("eni-1")) == 4 })
	w.cloud.do(func() {
		w.cloud.failed = &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "not allowed"}
	})
	w.dels(s, 3)
	eventually(t, "EC2 was asked", func() bool { return w.cloud.get(func() bool { return w.cloud.unassigns > 0 }) })
	w.adds(s, 10, 4) // all of them serve
	eventually(t, "people are told", func() bool { return w.said("EC2Denied") })
}

// has says how many addresses and prefixes for pods EC2 has on all ENIs.
func (c *cloud) has() (addresses, prefixes int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range c.enis {
		addresses += len(e.addresses) - 1
		prefixes += len(e.prefixes)
	}
	return addresses, prefixes
}

// TestPrefixesAreSwitchedOnAndOffUnderRunningPods: what pods hold stays, the rest becomes of the other kind.
func TestPrefixesAreSwitchedOnAndOffUnderRunningPods(t *testing.T) {
	w := newWorld(t)
	w.env["IP_COOLDOWN_PERIOD"] = "0"
	has := func(s service, addresses, prefixes int) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d addresses and %d prefixes", addresses, prefixes), func() bool {
			s.a.changed.Fire()
			a, p := w.cloud.has()
			return a == addresses && p == prefixes
		})
	}
	s, stop := w.start()
	w.adds(s, 0, 3)
	has(s, 18, 0)
	stop()

	w.env["ENABLE_PREFIX_DELEGATION"] = "true"
	s, stop = w.start()
	has(s, 3, 1) // the second ENI is not needed any more
	for _, addr := range w.adds(s, 10, 17) {
		if !netip.MustParsePrefix("10.0.0.0/8").Contains(addr) {
			t.Errorf("%s is of no prefix", addr)
		}
	}
	has(s, 3, 3) // 17 pods and 16 addresses ahead
	stop()

	w.env["ENABLE_PREFIX_DELEGATION"] = "false"
	s, _ = w.start()
	eventually(t, "the idle prefix is given back, those with pods stay", func() bool {
		s.a.changed.Fire()
		_, p := w.cloud.has()
		return p == 2
	})
	for i := range 17 {
		if _, err := s.Del(t.Context(), delRequest(fmt.Sprintf("p%d", 10+i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all prefixes are given back", func() bool { s.a.changed.Fire(); _, p := w.cloud.has(); return p == 0 })
}

func TestWithoutAFreePrefixSingleAddressesServe(t *testing.T) {
	w := newWorld(t)
	w.env["ENABLE_PREFIX_DELEGATION"], w.cloud.noPrefix = "true", true
	s, _ := w.start()
	w.adds(s, 0, 12)
	if a, p := w.cloud.has(); a < 12 || p != 0 {
		t.Errorf("%d addresses, %d prefixes", a, p)
	}
	eventually(t, "the node says so", func() bool { return w.said("NoFreePrefix", "subnet-1") })
	w.cloud.do(func() { w.cloud.noPrefix = false })
	w.passes(s, noPrefixFor, "a prefix is there as soon as the subnet has one", func() bool {
		_, p := w.cloud.has()
		return p > 0
	})
}

// TestABurstOfPodsIsOneCallOfEC2: each of them waits for the same answer.
func TestABurstOfPodsIsOneCallOfEC2(t *testing.T) {
	w := newWorld(t)
	w.typ, w.env["WARM_IP_TARGET"] = "m5.4xlarge", "1"
	s, _ := w.start()
	eventually(t, "one address ahead", func() bool { a, _ := w.cloud.has(); return a == 1 })
	var names []string
	for i := range 25 {
		name := fmt.Sprintf("p%d", i)
		if err := w.api.Create(t.Context(), pod(name, "u-"+name)); err != nil {
			t.Fatal(err)
		}
		names = append(names, name)
	}
	w.cloud.mu.Lock() // EC2 answers only when all of them wait
	before := w.cloud.assigns
	var wg sync.WaitGroup
	for _, name := range names {
		wg.Go(func() {
			if _, err := add(t, s, addRequest(name, "u-"+name, name)); err != nil {
				t.Error(err)
			}
		})
	}
	for deadline := time.Now().Add(10 * time.Second); waitingFor(s.a, 0) < 24 && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond)
	}
	w.cloud.mu.Unlock()
	wg.Wait()
	eventually(t, "one address ahead", func() bool { a, _ := w.cloud.has(); return a >= 26 })
	// A pod that is counted as waiting and as served in the same moment brings one too many, which goes in time.
	eventually(t, "and no more", func() bool {
		w.pass(31 * time.Second)
		s.a.changed.Fire()
		a, _ := w.cloud.has()
		return a == 26
	})
	if n := w.cloud.assigns - before; n > 3 { // for the first one, for all others, for the one ahead
		t.Errorf("%d calls for 25 pods", n)
	}
}
