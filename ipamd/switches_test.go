package ipamd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc/introspection"
)

// uses says whether a pod may get an address of the ENI.
func (s service) uses(eni string) bool {
	for _, c := range s.a.candidates() {
		if c.ENIID == eni {
			return true
		}
	}
	return false
}

// TestAPodKeepsItsAddressWhereItsENIIsNoMoreToBeManaged: MANAGE_UNTAGGED_ENI is switched off under it.
func TestAPodKeepsItsAddressWhereItsENIIsNoMoreToBeManaged(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
	w.env["WARM_ENI_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "0", "0"
	w.cloud.add(1, 3, false)
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "somebody's ENI is used", func() bool { return s.uses("eni-2") })
	names := 0
	for w.cloud.holder(mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()) != "eni-2" { // until the primary's are gone
		if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
			t.Fatal(err)
		}
		w.adds(s, names, 1)
		names++
	}
	had := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	kill()
	w.env["MANAGE_UNTAGGED_ENI"] = "false"
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if again := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(); again != had {
		t.Errorf("the pod had %s and has %s", had, again)
	}
	if got := w.cloud.holder(mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress()); got == "eni-2" || s.uses("eni-2") {
		t.Errorf("a new pod has an address of %s", got)
	}
	if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	w.quiet(s, 3, 20*time.Minute)
	if w.cloud.get(func() bool { return w.cloud.enis["eni-2"] == nil || len(w.cloud.enis["eni-2"].addresses) < 4 }) {
		t.Error("something of somebody's ENI was given back")
	}
}

// TestP50WhatWasOnItsWayOutIsNotGivenOnceEC2IsNotAskedAnyMore: ENABLE_IMDS_ONLY_MODE is switched on meanwhile, and IMDS shows
// what EC2 has taken back.
func TestP50WhatWasOnItsWayOutIsNotGivenOnceEC2IsNotAskedAnyMore(t *testing.T) {
	w := newWorld(t)
	w.env["WARM_IP_TARGET"], w.env["IP_COOLDOWN_PERIOD"] = "1", "0"
	s, stop := w.start()
	w.adds(s, 0, 5)
	eventually(t, "one more than five", func() bool { return len(w.cloud.addressesOf("eni-1")) == 6 })
	w.cloud.do(func() { w.cloud.stale, w.cloud.lost = true, 2 })
	w.dels(s, 4)
	eventually(t, "EC2 has four back", func() bool { s.a.changed.Fire(); return len(w.cloud.addressesOf("eni-1")) == 2 })
	stop()
	w.env["ENABLE_IMDS_ONLY_MODE"] = "true"
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if len(s.a.inventory.ENIs()[0].Addresses) < 6 {
		t.Fatalf("IMDS shows no more than EC2 has: %+v", s.a.inventory.ENIs())
	}
	for _, c := range s.a.candidates() {
		if !w.cloud.assigned(c.Address) && !slices.ContainsFunc(s.a.store.View().Leaving, func(l store.Leaving) bool { return l.Prefix.Contains(c.Address) }) {
			t.Errorf("%s may be handed out and EC2 has it back", c.Address)
		}
	}
	for _, addr := range w.adds(s, 10, 1) {
		if !w.cloud.assigned(addr) {
			t.Errorf("%s was handed out and EC2 has it back", addr)
		}
	}
}

func TestAConfigurationThatCanNotBeWrittenKeepsTheNodeFromReadinessAndIsSaid(t *testing.T) {
	w := newWorld(t)
	inTheWay := filepath.Join(w.dir, "10-aws.conflist")
	if err := os.MkdirAll(filepath.Join(inTheWay, "x"), 0o755); err != nil {
		t.Fatal(err)
	}
	s, _ := w.start()
	eventually(t, "the node's event", func() bool { return w.said("ConfigurationNotWritten", "can't become ready") })
	if s.a.ready.Load() || s.counted("conflist") == 0 {
		t.Errorf("ready %v, counted %v", s.a.ready.Load(), s.counted("conflist"))
	}
	if err := os.RemoveAll(inTheWay); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready once it can be written", s.a.ready.Load)
}

// TestAClockThatIsSetBackEndsNothingAndHoldsNothingForEver: across a restart of the agent, too.
func TestAClockThatIsSetBackEndsNothingAndHoldsNothingForEver(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"), pod("c", "u3"))
	w.env["WARM_ENI_TARGET"], w.env["MAX_ENI"] = "0", "1"
	s, stop := w.start()
	a := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	b := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress()
	w.wire(a)
	if _, err := s.Del(t.Context(), delRequest("s2")); err != nil {
		t.Fatal(err)
	}
	w.pass(-5 * time.Hour)
	for range 2 {
		w.reclaim(s)
		if again := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(); again != a {
			t.Errorf("the pod had %s and has %s", a, again)
		}
		if cooling := s.a.store.View().Cooling; len(cooling) != 1 || cooling[0].Address.String() != b {
			t.Errorf("%v rests", cooling)
		}
		stop()
		s, stop = w.start()
		eventually(t, "ready", s.a.ready.Load)
	}
	w.pass(time.Minute) // twice the cool-down
	s.a.changed.Fire()
	eventually(t, "the address that rested is free again", func() bool {
		return slices.ContainsFunc(s.a.candidates(), func(c store.Regular) bool { return c.Address.String() == b })
	})
	if err := func() error { _, err := s.Del(t.Context(), delRequest("s1")); return err }(); err != nil {
		t.Error(err)
	}
}

func TestWhatIsTurnedOffIsNotServed(t *testing.T) {
	w := newWorld(t, pod("a", "ua"))
	l := &logged{}
	w.log, w.metricsAddr = l, "127.0.0.1:0"
	w.env["DISABLE_METRICS"], w.env["DISABLE_INTROSPECTION"] = "true", "true"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("a", "ua", "ca"))
	if text := l.text(); strings.Contains(text, "endpoint served") {
		t.Error(text)
	}
	r, err := introspection.NewIntrospectionClient(w.call(t)).View(t.Context(), &introspection.ViewRequest{Name: "pods"})
	if err != nil || !strings.Contains(string(r.GetJson()), `"containerID":"ca"`) {
		t.Errorf("by the agent's own socket: %s, %v", r.GetJson(), err)
	}
}

func TestENIsHaveTheTagsThatAreAskedForAndStayInTheNodesSubnetWithoutDiscovery(t *testing.T) {
	w := newWorld(t)
	w.env["ADDITIONAL_ENI_TAGS"], w.env["ENABLE_SUBNET_DISCOVERY"], w.env["CLUSTER_NAME"], w.env["WARM_ENI_TARGET"] = `{"team":"shop"}`, "false", "demo", "2"
	w.cloud.subnets = []types.Subnet{subnet("subnet-1", 100), subnet("subnet-2", 1000)}
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "the warm ENI", func() bool {
		return slices.Equal(w.cloud.secondary(), []string{"subnet-1"}) || slices.Equal(w.cloud.secondary(), []string{""})
	})
	w.cloud.do(func() {
		if w.cloud.subnetsAsked > 0 {
			t.Errorf("subnets were asked for %d times", w.cloud.subnetsAsked)
		}
		for _, e := range w.cloud.enis {
			if e.device <= 0 {
				continue
			}
			tags := map[string]string{}
			for _, tag := range e.tags {
				tags[*tag.Key] = *tag.Value
			}
			if tags["team"] != "shop" || tags["cluster.k8s.amazonaws.com/name"] != "demo" {
				t.Errorf("%v", tags)
			}
		}
	})
}
