package ipamd

import (
	"context"
	"slices"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/placement"
)

// secondary returns the attached ENIs but the primary, by subnet.
func (c *cloud) secondary() (in []string) {
	c.do(func() {
		for _, e := range c.enis {
			if e.device > 0 {
				in = append(in, e.subnet)
			}
		}
	})
	slices.Sort(in)
	return in
}

func (w *world) edit(o client.Object, f func()) {
	w.t.Helper()
	if err := w.api.Get(context.Background(), client.ObjectKeyFromObject(o), o); err != nil {
		w.t.Fatal(err)
	}
	f()
	if err := w.api.Update(context.Background(), o); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) editNode(f func(*corev1.Node)) {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	w.edit(n, func() { f(n) })
}

func eniConfig(name, subnet string, groups ...string) *eniconfigv1.ENIConfig {
	return &eniconfigv1.ENIConfig{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: eniconfigv1.ENIConfigSpec{Subnet: subnet, SecurityGroups: groups}}
}

// holder is the ENI that an address is of.
func (c *cloud) holder(address string) (id string) {
	c.do(func() {
		for _, e := range c.enis {
			for _, a := range e.addresses {
				if a.String() == address {
					id = e.id
				}
			}
		}
	})
	return id
}

func TestCustomNetworkingFollowsTheNodesENIConfig(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
	w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"], w.env["IP_COOLDOWN_PERIOD"], w.env["WARM_ENI_TARGET"] = "true", "0", "0"
	w.cloud.subnets = []types.Subnet{subnet("subnet-1", 100), subnet("subnet-pods", 100), subnet("subnet-new", 100)}
	s, _ := w.start()
	eventually(t, "the node says what is missing", func() bool { return w.said("ENIConfigMissing", "ENIConfig default", "k8s.amazonaws.com/eniConfig") })
	if s.a.ready.Load() || len(w.cloud.secondary()) > 0 {
		t.Fatal("ready without an address for pods")
	}
	if err := w.api.Create(t.Context(), eniConfig("default", "subnet-pods", "sg-pods")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "ready by the ENIConfig's event", s.a.ready.Load)
	first := w.cloud.holder(mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress())
	w.cloud.do(func() {
		if e := w.cloud.enis[first]; e == nil || e.subnet != "subnet-pods" || !slices.Equal(e.groups, []string{"sg-pods"}) {
			t.Errorf("the pod's address is of %+v", e)
		}
		if n := len(w.cloud.enis["eni-1"].addresses); n != 1 {
			t.Errorf("the primary ENI has %d addresses", n)
		}
	})
	// Another ENIConfig, by a label that changes on the live node: pods that run stay, new ones come to the new subnet.
	if err := w.api.Create(t.Context(), eniConfig("new", "subnet-new")); err != nil {
		t.Fatal(err)
	}
	w.editNode(func(n *corev1.Node) { n.Labels = map[string]string{"k8s.amazonaws.com/eniConfig": "new"} })
	eventually(t, "an ENI in the new subnet", func() bool { return slices.Equal(w.cloud.secondary(), []string{"subnet-new", "subnet-pods"}) })
	second := w.cloud.holder(mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress())
	w.cloud.do(func() {
		if e := w.cloud.enis[second]; e == nil || e.subnet != "subnet-new" || !slices.Equal(e.groups, []string{"sg-node"}) {
			t.Errorf("the new pod's address is of %+v", e)
		}
	})
	if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the old ENI goes with its last pod", func() bool { return slices.Equal(w.cloud.secondary(), []string{"subnet-new"}) })
	// What is known goes on without the ENIConfig.
	if err := w.api.Delete(t.Context(), eniConfig("new", "")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is gone", func() bool { return s.a.place().Reason == placement.NoConfig })
	if len(s.a.candidates()) == 0 {
		t.Error("the ENI that is there gives no addresses any more")
	}
}

// TestAPodWaitsForAnENIThatIsBeingMade: the metadata service and the kernel may show an ENI before EC2 has answered that it is
// attached. Until then nothing of it is given, and a pod is not told that all is full.
func TestAPodWaitsForAnENIThatIsBeingMade(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
	w.env["WARM_IP_TARGET"], w.env["MAX_ENI"] = "1", "2"
	held := make(chan struct{})
	w.cloud.attachHeld = held
	s, _ := w.start()
	w.adds(s, 0, 9) // all that the primary ENI has
	answered := make(chan error, 1)
	go func() {
		_, err := s.Add(t.Context(), addRequest("a", "u1", "s1"))
		answered <- err
	}()
	eventually(t, "the new ENI is known, and not answered for", func() bool { return len(s.a.inventory.ENIs()) == 2 })
	select {
	case err := <-answered:
		t.Fatalf("answered before the ENI was: %v", err)
	case <-time.After(200 * time.Millisecond):
	}
	close(held)
	select {
	case err := <-answered:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Error("no answer, and the ENI is there")
	}
}

func TestCustomNetworkingOnALiveNodeDrainsThePrimaryENI(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"), pod("c", "u3"), eniConfig("default", "subnet-pods"))
	w.cloud.subnets = append(w.cloud.subnets, subnet("subnet-pods", 100))
	w.env["IP_COOLDOWN_PERIOD"], w.env["WARM_ENI_TARGET"] = "0", "0"
	s, kill := w.start()
	addr := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	if w.cloud.holder(addr) != "eni-1" {
		t.Fatalf("%s is not the primary's", addr)
	}
	kill()
	w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"] = "true"
	s, kill2 := w.start()
	eventually(t, "the primary keeps its pod's address and gives the others back", func() bool {
		return w.cloud.get(func() bool { return len(w.cloud.enis["eni-1"].addresses) == 2 })
	})
	if again := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(); again != addr {
		t.Errorf("the pod had %s and has %s", addr, again)
	}
	new := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress()
	if w.cloud.holder(new) == "eni-1" {
		t.Error("a new pod has an address of the primary")
	}
	if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "and the last goes with its pod", func() bool {
		return w.cloud.get(func() bool { return len(w.cloud.enis["eni-1"].addresses) == 1 })
	})
	kill2()
	w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"] = "false" // and back
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	if again := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress(); again != new {
		t.Errorf("the pod had %s and has %s", new, again)
	}
	mustAdd(t, s, addRequest("c", "u3", "s3"))
	eventually(t, "the primary serves again", func() bool { s.a.changed.Fire(); return !s.draining("eni-1") })
}

// draining says whether an ENI keeps its pods and gets no others.
func (s service) draining(eni string) bool {
	for _, e := range s.a.snapshot().ENIs {
		if e.ID == eni {
			return e.Draining
		}
	}
	return true
}

func TestAnENIConfigOfAnotherZoneIsSaidAndNothingIsMade(t *testing.T) {
	w := newWorld(t, eniConfig("default", "subnet-elsewhere"))
	w.env["AWS_VPC_K8S_CNI_CUSTOM_NETWORK_CFG"] = "true"
	s, _ := w.start()
	eventually(t, "it is said", func() bool { return w.said("ENIConfigUnusable", "default", zone, "spec.subnet") })
	if len(w.cloud.secondary()) > 0 {
		t.Error("an ENI was made")
	}
	c := eniConfig("default", "")
	w.edit(c, func() { c.Spec.Subnet = "subnet-1" })
	eventually(t, "corrected", s.a.ready.Load)
}

func TestSubnetsAreFoundByTagAndAFullOneIsPassedOver(t *testing.T) {
	w := newWorld(t)
	w.env["CLUSTER_NAME"] = "blue"
	w.cloud.subnets = []types.Subnet{
		subnet("subnet-1", 0), subnet("subnet-2", 500, placement.TagRole, "1"), subnet("subnet-3", 50, placement.TagRole, "1"),
		subnet("subnet-red", 900, placement.TagRole, "1", placement.TagClusterPrefix+"red", "shared"), subnet("subnet-none", 900),
	}
	w.cloud.full = map[string]bool{"subnet-1": true, "subnet-2": true}
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	eventually(t, "an ENI where there is room", func() bool { return slices.Contains(w.cloud.secondary(), "subnet-3") })
	for _, id := range w.cloud.secondary() {
		if id != "subnet-3" {
			t.Errorf("an ENI in %s", id)
		}
	}
	w.cloud.do(func() { w.cloud.full = map[string]bool{"subnet-1": true, "subnet-2": true, "subnet-3": true} })
	for i := range 9 {
		name := string(rune('a' + i))
		if err := w.api.Create(t.Context(), pod(name, "u"+name)); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, s, addRequest(name, "u"+name, "s"+name))
	}
	eventually(t, "all are full, and it is said", func() bool {
		s.a.changed.Fire()
		return w.said("AddressesNotAvailable", "InsufficientFreeAddressesInSubnet", "subnet-3", placement.TagRole)
	})
	w.cloud.do(func() { w.cloud.full = map[string]bool{"subnet-1": true} })
	w.passes(s, fullMost*2, "it is tried again", func() bool { return len(w.cloud.secondary()) > 1 })
}

func TestASubnetThatIsKeptOutDrains(t *testing.T) {
	w := newWorld(t, pod("a", "u1"))
	w.env["IP_COOLDOWN_PERIOD"] = "0"
	s, _ := w.start()
	addr := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	w.cloud.do(func() {
		w.cloud.subnets = []types.Subnet{subnet("subnet-1", 99, placement.TagRole, "0"), subnet("subnet-2", 99, placement.TagRole, "1")}
	})
	s.a.subnetsWanted.Fire()
	eventually(t, "the primary gives back what no pod has", func() bool {
		return w.cloud.get(func() bool { return len(w.cloud.enis["eni-1"].addresses) == 2 })
	})
	eventually(t, "and ENIs are made elsewhere", func() bool { return slices.Contains(w.cloud.secondary(), "subnet-2") })
	if w.cloud.holder(addr) != "eni-1" {
		t.Error("a pod's address was given back")
	}
}

func TestWithoutTheRightToDescribeSubnetsThePrimarysIsUsed(t *testing.T) {
	w := newWorld(t)
	w.cloud.subnets = nil
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
}

func TestACordonedNodeGetsNoENI(t *testing.T) {
	w := newWorld(t)
	w.env["WARM_ENI_TARGET"] = "0"
	w.editNode(func(n *corev1.Node) { n.Spec.Unschedulable = true })
	s, _ := w.start()
	eventually(t, "the cordon is seen", func() bool { return s.a.place().cordoned })
	for i := range 10 {
		name := string(rune('a' + i))
		if err := w.api.Create(t.Context(), pod(name, "u"+name)); err != nil {
			t.Fatal(err)
		}
		_, err := add(t, s, addRequest(name, "u"+name, "s"+name))
		if i < 9 && err != nil {
			t.Fatal(err)
		}
		if i == 9 {
			wantCode(t, err, codes.ResourceExhausted, "cordoned", "AWS_MANAGE_ENIS_NON_SCHEDULABLE")
		}
	}
	if len(w.cloud.secondary()) > 0 {
		t.Error("an ENI was made on a cordoned node")
	}
	w.editNode(func(n *corev1.Node) { n.Spec.Unschedulable = false })
	eventually(t, "one comes with the uncordon", func() bool { return len(w.cloud.secondary()) > 0 })
	// A taint says the same.
	w.editNode(func(n *corev1.Node) {
		n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}}
	})
	eventually(t, "the cordon is seen", func() bool { return s.a.place().cordoned })
}

func TestACordonedNodeIsManagedWhereThatIsAskedFor(t *testing.T) {
	w := newWorld(t)
	w.env["AWS_MANAGE_ENIS_NON_SCHEDULABLE"], w.env["WARM_ENI_TARGET"] = "true", "2"
	w.editNode(func(n *corev1.Node) { n.Spec.Unschedulable = true })
	w.start()
	eventually(t, "an ENI comes", func() bool { return len(w.cloud.secondary()) > 0 })
}

func TestWithoutProvisioningNothingIsAskedFor(t *testing.T) {
	for _, name := range []string{"DISABLE_NETWORK_RESOURCE_PROVISIONING", "ENABLE_IMDS_ONLY_MODE"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a", "u1"), pod("b", "u2"), pod("c", "u3"))
			w.env[name], w.env["IP_COOLDOWN_PERIOD"], w.env["WARM_IP_TARGET"] = "true", "0", "1"
			if name == "ENABLE_IMDS_ONLY_MODE" {
				w.typ = "x9.huge" // EC2 is not asked for its limits either
			}
			w.cloud.do(func() { w.cloud.add(1, 2, false) })
			w.cloud.add(-1, 0, false).description = "aws-K8S-" + instanceID // a left-over
			s, _ := w.start()
			for i, p := range []string{"a", "b"} {
				mustAdd(t, s, addRequest(p, "u"+string(rune('1'+i)), "s"+p))
			}
			_, err := add(t, s, addRequest("c", "u3", "sc"))
			wantCode(t, err, codes.ResourceExhausted, name)
			if _, err := s.Del(t.Context(), delRequest("sa")); err != nil {
				t.Fatal(err)
			}
			mustAdd(t, s, addRequest("c", "u3", "sc"))
			w.cloud.do(func() {
				c := w.cloud
				if c.assigns+c.unassigns+c.sweeps+c.subnetsAsked > 0 || len(c.enis) != 3 || c.enis["eni-2"].device != 1 || len(c.enis["eni-2"].addresses) != 3 {
					t.Errorf("EC2 was asked for something: %d, %d, %d, %d, %d ENIs", c.assigns, c.unassigns, c.sweeps, c.subnetsAsked, len(c.enis))
				}
				if name == "ENABLE_IMDS_ONLY_MODE" && c.describes+c.typesAsked > 0 {
					t.Error("EC2 was asked")
				}
			})
		})
	}
}

func TestENIsThatTheAgentDidNotMake(t *testing.T) {
	for _, tc := range []struct {
		manage string
		tags   []types.Tag
		used   bool
	}{
		{"true", nil, true},
		{"false", nil, false},
		{"false", []types.Tag{{Key: awssdk.String(placement.TagNoManage), Value: awssdk.String("false")}}, true},
		{"true", []types.Tag{{Key: awssdk.String(placement.TagNoManage), Value: awssdk.String("true")}}, false},
	} {
		w := newWorld(t)
		w.env["MANAGE_UNTAGGED_ENI"], w.env["WARM_ENI_TARGET"] = tc.manage, "0"
		w.cloud.add(1, 3, false).tags = tc.tags
		w.cloud.grow(w.cloud.enis["eni-1"], 9)
		s, kill := w.start()
		eventually(t, "ready", s.a.ready.Load)
		eventually(t, "EC2 explained it", func() bool { return w.cloud.described() > 0 })
		used := func() bool { return s.uses("eni-2") }
		if tc.used {
			eventually(t, "it is used", used)
		}
		eventually(t, "the pool rests", func() bool { return w.cloud.get(func() bool { return w.cloud.sweeps > 0 }) })
		// Nobody uses it, and the primary alone meets the target: it stays all the same.
		if w.cloud.get(func() bool { return w.cloud.enis["eni-2"] == nil || w.cloud.enis["eni-2"].device != 1 }) {
			t.Errorf("%s, %v: it was detached", tc.manage, tc.tags)
		}
		if used() != tc.used {
			t.Errorf("%s, %v: used %t", tc.manage, tc.tags, used())
		}
		kill()
	}
}

func TestOnAnInstanceOfSeveralCardsPodsAreOnTheFirst(t *testing.T) {
	w := newWorld(t)
	w.typ = "p5.48xlarge" // 32 cards of 2 interfaces
	for card := 1; card < 32; card++ {
		e := w.cloud.add(1, 0, false)
		e.card, e.kind, e.addresses = card, "efa-only", nil
	}
	with := w.cloud.add(0, 4, false) // one with addresses that pods must not get
	with.card = 1
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	for i := range 50 {
		name := "p" + string(rune('a'+i/26)) + string(rune('a'+i%26))
		if err := w.api.Create(t.Context(), pod(name, "u"+name)); err != nil {
			t.Fatal(err)
		}
		mustAdd(t, s, addRequest(name, "u"+name, "s"+name))
	}
	devices := map[int]int{}
	for _, al := range s.a.store.View().Allocations {
		if al.Regular.ENIID == with.id {
			t.Fatal("a pod has an address of another card's ENI")
		}
		devices[al.Regular.Device]++
	}
	if devices[0] != 49 || devices[1] != 1 {
		t.Errorf("addresses by device: %v", devices)
	}
	w.cloud.do(func() {
		onFirst := 0
		for _, e := range w.cloud.enis {
			if e.card == 0 {
				onFirst++
			} else if e.device < 0 || len(e.addresses) > 5 {
				t.Errorf("%s of card %d was touched", e.id, e.card)
			}
		}
		if onFirst != 2 {
			t.Errorf("%d ENIs on card 0", onFirst)
		}
	})
}
