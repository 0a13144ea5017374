package ipamd

import (
	"errors"
	"maps"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/store"
)

var errBroken = errors.New("netlink: no buffer space")

// failures counts how often Reconcile answered with an error.
func (r *routing) failures() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *routing) state() hostnet.Actual {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.actual.Apply(nil)
}

// hide makes IMDS show an address no more.
func (c *cloud) hide(addr netip.Addr) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.omitted = append(c.omitted, addr)
}

// devices is what the host's nftables map has.
func (r *routing) devices() map[netip.Prefix]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.actual.Marks.Devices)
}

func TestAPodNeedsARuleOfItsOwnOnlyWherePacketsCantBeMarked(t *testing.T) {
	for _, c := range []struct {
		name    string
		noMarks error
		table   uint32
		events  int
	}{{"marked by the ENI", nil, 0, 0}, {"no nf_tables", hostnet.ErrNoNFTables, 3, 1}} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			w.routing.noMarks = c.noMarks
			s, _ := w.start()
			eventually(t, "routing is in place", s.a.hasListed)
			if got := s.a.routeTable(&store.Regular{Device: 2, RouteTable: 3}); got != c.table {
				t.Errorf("table %d, want %d", got, c.table)
			}
			eventually(t, "the node's event", func() bool { return len(w.events("NFTablesMissing")) == c.events })
		})
	}
}

func TestWhatIsNotTranslatedIsSaidOnceAndTheRestGoesOn(t *testing.T) {
	w := newWorld(t)
	w.routing.noNAT = hostnet.ErrNoNFTables
	s, _ := w.start()
	eventually(t, "pods can be wired, and the node's event", func() bool { return len(s.a.candidates()) > 0 && len(w.events("SourceNATMissing")) == 1 })
	w.routing.meddle(func(a *hostnet.Actual) { a.Marks = hostnet.Marks{} })
	eventually(t, "the routing is put in place again", func() bool { return len(w.routing.devices()) > 0 })
	if n := len(w.events("SourceNATMissing")); n != 1 {
		t.Errorf("said %d times", n)
	}
}

func TestAnAddressIsGivenOnlyOnceItsMarkIsThere(t *testing.T) {
	w := newWorld(t)
	s, _ := w.start()
	eventually(t, "the pool is filled and routed", func() bool { return len(s.a.candidates()) > 0 && len(w.routing.devices()) > 0 })
	late := netip.MustParseAddr("192.168.1.200")
	given := func() bool {
		return slices.ContainsFunc(s.a.candidates(), func(r store.Regular) bool { return r.Address == late })
	}
	w.routing.set(errBroken)
	s.a.inventory.Learn("eni-1", []netip.Prefix{netip.PrefixFrom(late, 32)})
	eventually(t, "the attempt to route it failed", func() bool { return w.routing.failures() > 0 })
	if given() {
		t.Fatal("given before what it sends is marked")
	}
	w.routing.set(nil)
	eventually(t, "it can be given", given)
	if device, ok := w.routing.devices()[netip.PrefixFrom(late, 32)]; !ok || device != 0 {
		t.Errorf("given, and not in the map: %d, %t", device, ok)
	}
}

// Also who does it again at once: the agent pauses between two repairs.
func TestWhatSomebodyFlushesIsMendedWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.virtual()
		_, stop := w.start()
		defer stop()
		time.Sleep(time.Minute)
		before := w.routing.state()
		if len(before.Marks.Devices) == 0 || before.Tables.Digests[hostnet.TableKey{Name: hostnet.NATTable}] == "" {
			t.Fatalf("routing is not in place: %+v", before)
		}
		for what, f := range map[string]func(*hostnet.Actual){
			"nft flush ruleset": func(a *hostnet.Actual) { a.Marks, a.Tables = hostnet.Marks{}, hostnet.Tables{} },
			"ip rule flush": func(a *hostnet.Actual) {
				a.Rules = slices.DeleteFunc(slices.Clone(a.Rules), func(r hostnet.Rule) bool { return r.Ours })
			},
			"ip route flush": func(a *hostnet.Actual) { a.Routes = nil },
		} {
			for range 5 {
				w.routing.meddle(f)
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(time.Second - 10*time.Millisecond)
			now := w.routing.state()
			if len(now.Rules) != len(before.Rules) || len(now.Routes) != len(before.Routes) || !maps.Equal(now.Marks.Devices, before.Marks.Devices) || !maps.Equal(now.Tables.Digests, before.Tables.Digests) {
				t.Errorf("%s is not mended: %+v, want %+v", what, now, before)
			}
			time.Sleep(time.Minute)
		}
	})
}

func TestSourceNATFollowsTheConfigurationAcrossRestarts(t *testing.T) {
	w := newWorld(t)
	key := hostnet.TableKey{Name: hostnet.NATTable}
	table := func() string { return w.routing.state().Tables.Digests[key] }
	_, stop := w.start()
	eventually(t, "source NAT is in place", func() bool { return table() != "" })
	before := table()
	w.routing.meddle(func(a *hostnet.Actual) { a.Tables = hostnet.Tables{} })
	eventually(t, "a flush is mended", func() bool { return table() == before })
	stop()
	w.env["AWS_VPC_K8S_CNI_RANDOMIZESNAT"], w.env["AWS_VPC_K8S_CNI_EXCLUDE_SNAT_CIDRS"] = "none", "10.0.0.0/8"
	w.env["AWS_EXTERNAL_SERVICE_CIDRS"] = "198.51.100.0/24"
	external := func() bool {
		return slices.ContainsFunc(w.routing.state().Rules, func(r hostnet.Rule) bool { return r.Priority == hostnet.ExternalPriority })
	}
	_, stop = w.start()
	eventually(t, "it is another one", func() bool { return table() != before && table() != "" && external() })
	stop()
	w.env["AWS_VPC_K8S_CNI_EXTERNALSNAT"], w.env["AWS_VPC_CNI_NODE_PORT_SUPPORT"], w.env["AWS_EXTERNAL_SERVICE_CIDRS"] = "true", "false", ""
	w.start()
	eventually(t, "it is gone", func() bool { return table() == "" && !external() })
}

// TestP5WhatAnIPv6PodHoldsStaysRoutedWhileMetadataShowsNothing: neither the prefix nor the node's own address.
func TestP5WhatAnIPv6PodHoldsStaysRoutedWhileMetadataShowsNothing(t *testing.T) {
	w := ipv6World(t, numbered(1)...)
	s, _ := w.start()
	held := netip.PrefixFrom(netip.MustParseAddr(mustAdd(t, s, numberedAdd(0)).GetRegular().GetAddress()), 128)
	w.cloud.set(func() { w.cloud.enis["eni-1"].ipv6, w.cloud.noPrefix, w.cloud.ipv6None = nil, true, true })
	w.pass(2 * enis.MetadataLate) // what EC2 said is too old
	if _, err := s.a.inventory.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if e := s.a.inventory.ENIs()[0]; len(e.Addresses)+len(e.Prefixes) > 0 {
		t.Fatalf("the view still has %v and %v", e.Addresses, e.Prefixes)
	}
	w.routing.meddle(func(a *hostnet.Actual) { a.Marks = hostnet.Marks{} })
	eventually(t, "it is marked again", func() bool { _, ok := w.routing.devices()[held]; return ok })
}

func TestP5WhatAPodHoldsStaysRoutedWhileMetadataShowsLess(t *testing.T) {
	w := newWorld(t, pod("p1", "u1"))
	s, _ := w.start()
	r := mustAdd(t, s, addRequest("p1", "u1", "sandbox-1")).GetRegular()
	held := netip.PrefixFrom(netip.MustParseAddr(r.GetAddress()), 32)
	eventually(t, "it is marked", func() bool { _, ok := w.routing.devices()[held]; return ok })
	for _, what := range []func(){func() {}, func() { w.cloud.hide(held.Addr()) }} {
		what()
		if _, err := s.a.inventory.Refresh(t.Context()); err != nil { // the first lets it see what EC2 said
			t.Fatal(err)
		}
	}
	if slices.ContainsFunc(s.a.inventory.ENIs(), func(e enis.ENI) bool { return slices.Contains(e.Addresses, held.Addr()) }) {
		t.Fatal("the view still has the address")
	}
	w.routing.meddle(func(a *hostnet.Actual) { a.Marks = hostnet.Marks{} })
	eventually(t, "it is marked again", func() bool { _, ok := w.routing.devices()[held]; return ok })
}
