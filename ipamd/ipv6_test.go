package ipamd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/smithy-go"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/introspect"
	"github.com/branchline-cni/branchline/ipamd/store"
	"github.com/branchline-cni/branchline/rpc"
)

func numbered(n int) (pods []client.Object) {
	for i := range n {
		pods = append(pods, pod(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i)))
	}
	return pods
}

func numberedAdd(i int) *rpc.AddRequest {
	return addRequest(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), fmt.Sprintf("s%d", i))
}

// One prefix is all that is asked for, whatever the warm targets and however late IMDS is; no other ENI is made.
func TestAnIPv6NodeLivesOnOnePrefixOfItsPrimaryENI(t *testing.T) {
	const pods = 40 // more than an ENI has places
	w := ipv6World(t, numbered(pods)...)
	w.env["WARM_ENI_TARGET"], w.env["WARM_IP_TARGET"] = "3", "20"
	w.cloud.ipv6Late = true
	s, kill := w.start()
	prefix := netip.MustParsePrefix("2001:db8:0:1:100::/80")
	var mu sync.Mutex
	holds := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for i := range pods {
		wg.Go(func() {
			r, err := add(t, s, numberedAdd(i))
			if err != nil {
				t.Errorf("pod %d: %v", i, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			a, err := netip.ParseAddr(r.GetRegular().GetAddress())
			if _, twice := holds[a]; err != nil || twice || !prefix.Contains(a) || a == prefix.Addr() || r.GetRegular().GetEniId() != "eni-1" || r.GetRegular().GetDeviceNumber() != 0 {
				t.Errorf("pod %d: %v, %v", i, r, err)
			}
			holds[a] = i
		})
	}
	wg.Wait()
	kill()
	s, _ = w.start()
	for a, i := range holds {
		if r := mustAdd(t, s, numberedAdd(i)); r.GetRegular().GetAddress() != a.String() {
			t.Errorf("pod %d had %s and has %v", i, a, r)
		}
		if r, err := s.Check(t.Context(), checkRequest(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i), fmt.Sprintf("s%d", i))); err != nil || r.GetRegular().GetAddress() != a.String() {
			t.Errorf("CHECK of pod %d: %v, %v", i, r, err)
		}
	}
	// The agent that came after has asked EC2, and was told of the prefix that IMDS does not show.
	if calls, enis, prefixes := w.cloud.counted(); calls != 1 || enis != 1 || prefixes != 1 {
		t.Errorf("%d calls, %d ENIs, %d prefixes", calls, enis, prefixes)
	}
	marked := func() bool {
		d := w.routing.devices()
		return len(d) == 1 && d[prefix] == 0
	}
	eventually(t, "the prefix is marked as a whole", marked)
	w.routing.mu.Lock()
	defer w.routing.mu.Unlock()
	if !w.routing.actual.Marks.Shape.IPv6 {
		t.Errorf("marked are %v", w.routing.actual.Marks)
	}
	if slices.ContainsFunc(w.routing.actual.Rules, func(r hostnet.Rule) bool { return r.From.IsValid() && r.From.Addr().Is4() }) {
		t.Errorf("rules of IPv4: %v", w.routing.actual.Rules)
	}
}

// An address that rests is given to nobody, over a restart too, and one that was given is not seen again before long.
func TestAnIPv6AddressRestsBeforeItIsGivenAgain(t *testing.T) {
	w := ipv6World(t, numbered(4)...)
	s, kill := w.start()
	first := mustAdd(t, s, numberedAdd(0)).GetRegular().GetAddress()
	if _, err := s.Del(t.Context(), delRequest("s0")); err != nil {
		t.Fatal(err)
	}
	kill()
	s, _ = w.start()
	if again := mustAdd(t, s, numberedAdd(1)).GetRegular().GetAddress(); again == first {
		t.Errorf("%s is given while it rests", first)
	}
	w.pass(time.Minute)
	if again := mustAdd(t, s, numberedAdd(2)).GetRegular().GetAddress(); again == first {
		t.Errorf("%s is the next one again", first)
	}
}

// The answer was lost, EC2 had given the prefix: it is found, and no second one is asked for.
func TestALostAnswerCostsNoSecondIPv6Prefix(t *testing.T) {
	w := ipv6World(t)
	w.cloud.lost, w.cloud.ipv6Late = 1, true
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	if calls, _, prefixes := w.cloud.counted(); calls != 1 || prefixes != 1 {
		t.Errorf("%d calls, %d prefixes", calls, prefixes)
	}
}

func TestAnIPv6PrefixThatIsThereIsUsedWithoutACall(t *testing.T) {
	for name, variable := range map[string]string{"": "MAX_ENI", "somebody else provides": "DISABLE_NETWORK_RESOURCE_PROVISIONING", "IMDS alone": "ENABLE_IMDS_ONLY_MODE"} {
		t.Run(name, func(t *testing.T) {
			w := ipv6World(t, numbered(1)...)
			if variable != "MAX_ENI" {
				w.env[variable] = "true"
			}
			w.cloud.enis["eni-1"].ipv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1:7::/80")}
			s, _ := w.start()
			if r := mustAdd(t, s, numberedAdd(0)); r.GetRegular().GetAddress() != "2001:db8:0:1:7::1" {
				t.Error(r)
			}
			if calls, _, _ := w.cloud.counted(); calls != 0 {
				t.Errorf("%d calls", calls)
			}
		})
	}
}

func TestAnIPv6NodeWithoutAPrefixSaysWhyAndServesOnceItHasOne(t *testing.T) {
	denied := &smithy.GenericAPIError{Code: "UnauthorizedOperation", Message: "You are not authorized to perform this operation."}
	for name, c := range map[string]struct {
		broken, mended func(*world)
		reason         string
		says           []string
	}{
		"denied": {
			func(w *world) { w.cloud.failed = denied }, func(w *world) { w.cloud.failed = nil },
			"EC2Denied", []string{"AmazonEKS_CNI_IPv6_Policy"},
		},
		"no free prefix": {
			func(w *world) { w.cloud.noPrefix = true }, func(w *world) { w.cloud.noPrefix = false },
			"AddressesNotAvailable", []string{"/80", "InsufficientCidrBlocks", "subnet CIDR reservation"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := ipv6World(t, numbered(2)...)
			c.broken(w)
			s, _ := w.start()
			eventually(t, "the node's event", func() bool { return w.said(c.reason, c.says...) })
			if s.a.ready.Load() {
				t.Error("ready without an address")
			}
			began := time.Now()
			_, err := add(t, s, numberedAdd(0))
			wantCode(t, err, codes.ResourceExhausted, "default/p0", "IPv6 prefix")
			if took := time.Since(began); took > 8*time.Second {
				t.Errorf("refused after %s", took)
			}
			w.cloud.set(func() { c.mended(w) })
			eventually(t, "ready", s.a.ready.Load)
			mustAdd(t, s, numberedAdd(1))
		})
	}
	t.Run("an instance type without prefixes", func(t *testing.T) {
		w := ipv6World(t, numbered(1)...)
		w.typ = "m4.large"
		s, _ := w.start()
		eventually(t, "the node's event", func() bool { return w.said("IPv6NeedsNitro", "m4.large", "Nitro") })
		_, err := add(t, s, numberedAdd(0))
		wantCode(t, err, codes.ResourceExhausted, "m4.large")
	})
	t.Run("nobody provides", func(t *testing.T) {
		w := ipv6World(t, numbered(1)...)
		w.env["DISABLE_NETWORK_RESOURCE_PROVISIONING"] = "true"
		s, _ := w.start()
		_, err := add(t, s, numberedAdd(0))
		wantCode(t, err, codes.ResourceExhausted, "DISABLE_NETWORK_RESOURCE_PROVISIONING")
	})
}

// The API server refuses the trunk's request for a while: it is repeated until it succeeds, and the branch pod that waits is
// wired with its IPv6 address.
func TestTheTrunksRequestIsRepeatedInIPv6ClustersToo(t *testing.T) {
	for _, mode := range []string{"strict", "standard"} {
		t.Run(mode, func(t *testing.T) {
			w := ipv6World(t, ipv6BranchPod("green", "u1", 7), &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
			w.env["ENABLE_POD_ENI"], w.env["POD_SECURITY_GROUP_ENFORCING_MODE"] = "true", mode
			var refused atomic.Int32
			w.api = interceptor.NewClient(w.api, interceptor.Funcs{
				Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
					if _, is := o.(*cninodev1.CNINode); is && refused.Add(1) <= 2 {
						return errors.New("etcdserver: leader changed")
					}
					return c.Patch(ctx, o, p, opts...)
				},
			})
			s, _ := w.start()
			eventually(t, "the feature, at the third try", func() bool {
				var n cninodev1.CNINode
				err := w.api.Get(context.Background(), client.ObjectKey{Name: nodeName}, &n)
				_, has := n.Has(cninodev1.SecurityGroupsForPods)
				return err == nil && has
			})
			if refused.Load() < 3 {
				t.Errorf("asked %d times", refused.Load())
			}
			w.cloud.attachTrunk()
			eventually(t, "the label", w.labelled)
			b := mustAdd(t, s, addRequest("green", "u1", "s1")).GetBranch()
			if b.GetAddress() != "2001:db8:0:1::b:7" || b.GetGateway() != "fe80:ec2::1" || b.GetSubnetCidr() != "2001:db8:0:1::/64" || b.GetVlanId() != 7 {
				t.Errorf("answered %v", b)
			}
			w.routing.mu.Lock()
			behind := slices.ContainsFunc(w.routing.actual.Rules, func(r hostnet.Rule) bool { return r.From.IsValid() && r.From.Addr() == hostnet.RouterIPv6 })
			w.routing.mu.Unlock()
			if behind != (mode == "strict") {
				t.Errorf("the router's advertisements have a rule: %t", behind)
			}
		})
	}
}

// What IMDS and EC2 show of IPv6 on other ENIs is not for pods, and such ENIs are left alone.
func TestOtherENIsOfAnIPv6NodeAreLeftAlone(t *testing.T) {
	w := ipv6World(t, numbered(1)...)
	other := w.cloud.add(1, 3, false)
	other.ipv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1:9::/80")}
	s, _ := w.start()
	if r := mustAdd(t, s, numberedAdd(0)); r.GetRegular().GetEniId() != "eni-1" {
		t.Error(r)
	}
	if w.cloud.get(func() bool { return other.up }) {
		t.Error("an ENI of somebody else's is set up")
	}
	if p := s.a.snapshot(); len(p.ENIs) != 1 || p.Attached != 2 {
		t.Errorf("%+v", p)
	}
}

func TestIntrospectionAndMetricsOfAnIPv6Node(t *testing.T) {
	w := ipv6World(t, numbered(2)...)
	s, _ := w.start()
	addr := mustAdd(t, s, numberedAdd(0)).GetRegular().GetAddress()
	v := s.a.views()[introspect.ViewENIs]().(introspect.ENIs)
	e := v.ENIs["eni-1"]
	c := e.IPv6["2001:db8:0:1:100::/80"]
	if v.AssignedIPs != 1 || len(e.IPv4) != 0 || !c.IsPrefix || len(c.Addresses) != 1 || c.Addresses[addr].Pod.Name != "p0" {
		t.Errorf("%+v", v)
	}
	eventually(t, "ready", s.a.ready.Load)
	sizes := s.a.sizes()
	if sizes.prefixes != [2]int{0, 1} || sizes.assigned != 1 || sizes.total != 1<<16 || sizes.ready != 1 {
		t.Errorf("%+v", sizes)
	}
}

// What the executable's GC keeps and drops, it keeps and drops of IPv6 addresses.
func TestGCOfAnIPv6NodeEndsWhatNobodyHas(t *testing.T) {
	w := ipv6World(t, numbered(3)...)
	s, _ := w.start()
	for i := range 3 {
		mustAdd(t, s, numberedAdd(i))
	}
	w.pass(5 * time.Minute) // no executable is at work on them any more
	r, err := s.Gc(t.Context(), &rpc.GcRequest{Version: "test", NetworkName: "aws-cni", Valid: []*rpc.Attachment{numberedAdd(1).GetAttachment()}})
	if err != nil || status.Code(err) != codes.OK {
		t.Fatal(r, err)
	}
	view := s.a.store.View()
	if len(view.Allocations) != 1 || view.Allocations[0].ContainerID != "s1" || len(view.Cooling) != 2 {
		t.Errorf("%+v", view)
	}
}

// Property: of any prefix and whatever is taken of it, what is offered is in it, never its first address, never anything
// that is taken where it is an IPv6 prefix, each once; and the list is long enough for a burst.
func TestWhatIsOfferedOfAPrefixIsFreeAndEnough(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		u := rapid.SampledFrom([]netip.Prefix{
			netip.MustParsePrefix("10.0.0.16/28"), netip.MustParsePrefix("10.0.0.5/32"), netip.MustParsePrefix("2001:db8::/80"), netip.MustParsePrefix("2001:db8::ff00:0/107"),
		}).Draw(t, "unit")
		held, cooling := map[netip.Addr]bool{}, map[netip.Addr]bool{}
		for _, n := range rapid.SliceOfN(rapid.IntRange(0, 700), 0, 300).Draw(t, "taken") {
			b := u.Addr().AsSlice()
			b[len(b)-1], b[len(b)-2] = b[len(b)-1]+byte(n), b[len(b)-2]+byte(n>>8)
			a, _ := netip.AddrFromSlice(b)
			if into := []map[netip.Addr]bool{held, cooling}[n%2]; u.Contains(a) {
				into[a] = true
			}
		}
		offered := map[netip.Addr]bool{}
		for a := range givable(u, held, cooling) {
			if !u.Contains(a) || offered[a] || u.Addr().Is6() && (a == u.Addr() || held[a] || cooling[a]) {
				t.Fatalf("%s of %s", a, u)
			}
			offered[a] = true
		}
		if want := 1 << min(8, u.Addr().BitLen()-u.Bits()); len(offered) < want || len(offered) > 512 {
			t.Fatalf("%d are offered of %s, held %d", len(offered), u, len(maps.Collect(maps.All(held))))
		}
	})
}

// Pods' addresses of egress-cni are routed on the host, too: they are taken for no other agent's, in neither kind of cluster.
func TestEgressAddressesAreNobodysPods(t *testing.T) {
	for _, w := range []*world{newWorld(t), ipv6World(t)} {
		w.routing.pods = []netip.Addr{netip.MustParseAddr("169.254.172.2"), netip.MustParseAddr("fd00::ac:2"), netip.MustParseAddr("10.9.9.9")}
		s, _ := w.start()
		s.a.mu.Lock()
		if n := len(s.a.orphans); n != 1 {
			t.Errorf("%d orphans", n)
		}
		s.a.mu.Unlock()
	}
}

// A pod of upstream's agent keeps its IPv6 address, its DEL is understood, and nobody else is given the address.
func TestTheFormerAgentsIPv6PodsAreTakenOver(t *testing.T) {
	w := ipv6World(t, append(numbered(2), running("old", "uo", "2001:db8:0:1:7::1"))...)
	w.cloud.enis["eni-1"].ipv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1:7::/80")}
	w.routing.pods = []netip.Addr{netip.MustParseAddr("2001:db8:0:1:7::1")}
	checkpoint := fmt.Sprintf(`{"version":"vpc-cni-ipam/1","allocations":[{"networkName":"aws-cni","containerID":"old-s","ifName":"eth0","ipv6":"2001:db8:0:1:7::1","allocationTimestamp":%d,"metadata":{"k8sPodNamespace":"default","k8sPodName":"old","interfacesCount":1}}]}`, w.now().Add(-time.Hour).UnixNano())
	if err := os.WriteFile(w.checkpoint(), []byte(checkpoint), 0o600); err != nil {
		t.Fatal(err)
	}
	s, _ := w.start()
	if r := mustAdd(t, s, numberedAdd(0)); r.GetRegular().GetAddress() != "2001:db8:0:1:7::2" {
		t.Errorf("the new pod has %v", r)
	}
	eventually(t, "the pod is known by its UID and its ENI", func() bool {
		return slices.ContainsFunc(s.a.store.View().Allocations, func(al store.Allocation) bool {
			return al.Pod.UID == "uo" && al.Regular.ENIID == "eni-1"
		})
	})
	if n := s.a.sizes().orphans; n != 0 {
		t.Errorf("%d orphans", n)
	}
	d, err := s.Del(t.Context(), delRequest("old-s"))
	if err != nil || !d.GetFound() {
		t.Error(d, err)
	}
}
