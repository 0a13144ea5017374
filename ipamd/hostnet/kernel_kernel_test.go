//go:build kernel

package hostnet

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// open makes a Kernel of the namespace.
func open(t *testing.T, ns *nstest.NS) (k *Kernel) {
	t.Helper()
	ns.Do(t, func() (err error) {
		k, err = NewKernel()
		return err
	})
	t.Cleanup(k.Close)
	return k
}

func reconcile(t *testing.T, k *Kernel, d Desired) Result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	r, err := k.Reconcile(ctx, d)
	if err != nil {
		t.Fatalf("%+v: %v", d, err)
	}
	return r
}

func (k *Kernel) actual(t *testing.T, d Desired) Actual {
	t.Helper()
	a, err := k.routing(d)
	if err == nil {
		a.Marks, err = k.nft.marksOf(context.Background(), d.shape())
	}
	if err == nil {
		a.Tables, err = k.nft.ruleTables(context.Background())
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// TestRoutingOfARealKernelIsReconciledBothWays goes through modes, ENIs that come and go and gateways that change.
func TestRoutingOfARealKernelIsReconciledBothWays(t *testing.T) {
	for _, c := range []struct {
		family         string
		ipv6           bool
		primary, gw    string
		other, foreign string
	}{
		{"IPv4", false, "192.168.1.20", "192.168.0.1", "192.168.0.2", "10.77.0.0/16"},
		{"IPv6", true, "fd00:1::20", "fe80:ec2::1", "fd00:1::2", "fd00:77::/64"},
	} {
		t.Run(c.family, func(t *testing.T) {
			node, peer := nstest.New(t), nstest.New(t)
			node.Veth(t, "ens6", peer, "peer")
			k := open(t, node)
			foreign := netlink.NewRule()
			foreign.Family, foreign.Priority, foreign.Table = netlinkFamily(c.ipv6), 20, LocalTable
			foreign.Src = ipNet(netip.MustParsePrefix(c.foreign))
			if err := node.Handle.RuleAdd(foreign); err != nil {
				t.Fatal(err)
			}
			eni := ENI{Device: 1, LinkIndex: node.Link(t, "ens6").Attrs().Index, Primary: netip.MustParseAddr(c.primary), Gateway: netip.MustParseAddr(c.gw)}
			for n := range 750 { // more than one message's worth
				eni.Prefixes = append(eni.Prefixes, addressOf(c.ipv6, n/200, n%200))
			}
			eni.Prefixes = append(eni.Prefixes, addressOf(c.ipv6, 7, 6), netip.PrefixFrom(addressOf(c.ipv6, 9, 6).Addr(), addressOf(c.ipv6, 9, 6).Bits()-4)) // 9.16/28
			moved := eni
			moved.Gateway, moved.Prefixes = netip.MustParseAddr(c.other), eni.Prefixes[10:]
			further := eni // of another network card; its table's number is not in a byte
			further.Card, further.Device, further.Prefixes = 1, 3, eni.Prefixes[740:]
			nodeLocal := []netip.Prefix{netip.MustParsePrefix("169.254.20.10/32"), netip.MustParsePrefix("fd00:ec2::23/128")}
			for i, d := range []Desired{{}, {LocalBehindPods: true, ENIs: []ENI{eni}}, {LocalBehindPods: true, NodeLocal: nodeLocal, ENIs: []ENI{moved}}, {ENIs: []ENI{eni}}, {ENIs: []ENI{further}}, {}} {
				d.IPv6, d.VethPrefix = c.ipv6, "eni"
				if r := reconcile(t, k, d); r.Marks != nil || r.Kubelet != nil {
					t.Fatalf("step %d: %v, %v", i, r.Marks, r.Kubelet)
				}
				if r := reconcile(t, k, d); len(r.Ops) > 0 {
					t.Fatalf("step %d: a second time %v", i, r.Ops)
				}
				a := k.actual(t, d)
				want := LocalPriority
				if d.LocalBehindPods {
					want = LocalPriorityStrict
				}
				for _, r := range a.Rules {
					if r.isLocal() && r.Priority != want {
						t.Fatalf("step %d: local rule at %d, want %d", i, r.Priority, want)
					}
				}
				entries := 0
				for _, e := range d.ENIs {
					entries += len(e.Prefixes)
				}
				if len(a.Routes) != 2*len(d.ENIs) || len(a.Marks.Devices) != entries {
					t.Fatalf("step %d: %d routes, %d prefixes", i, len(a.Routes), len(a.Marks.Devices))
				}
				if !slices.ContainsFunc(a.Rules, func(r Rule) bool { return r.Priority == 20 && r.From == netip.MustParsePrefix(c.foreign) }) {
					t.Fatalf("step %d: somebody else's rule is gone", i)
				}
			}
		})
	}
}

// TestAFlushIsHeardOfAndMended does what administrators, firewalls and network managers do.
func TestAFlushIsHeardOfAndMended(t *testing.T) {
	node, peer := nstest.New(t), nstest.New(t)
	node.Veth(t, "ens6", peer, "peer")
	node.Veth(t, "eth0", peer, "peer0")
	k := open(t, node)
	d := Desired{LocalBehindPods: true, VethPrefix: "eni", NAT: stockNAT(), Egress: netip.MustParsePrefix("fd00::ac:0/118"), ENIs: []ENI{
		{Device: 0, LinkIndex: node.Link(t, "eth0").Attrs().Index, Primary: netip.MustParseAddr("192.168.1.10"), Gateway: netip.MustParseAddr("192.168.0.1")},
		{Device: 1, LinkIndex: node.Link(t, "ens6").Attrs().Index, Primary: netip.MustParseAddr("192.168.1.20"),
			Gateway: netip.MustParseAddr("192.168.0.1"), Prefixes: []netip.Prefix{addressOf(false, 1, 1)}},
	}}
	nat, _, _ := d.natTable()
	guard, _ := d.guardTable()
	reconcile(t, k, d)
	conn, err := nftables.New(nftables.WithNetNSFd(node.FD()))
	if err != nil {
		t.Fatal(err)
	}
	theirs := conn.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyIPv4})
	if err := conn.Flush(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	events, ended := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(ended)
		_ = node.Try(func() error {
			k.Watch(ctx, func() {
				select {
				case events <- struct{}{}:
				default:
				}
			})
			return nil
		})
	}()
	defer func() { cancel(); <-ended }()
	<-events // it has subscribed
	for _, c := range []struct {
		what string
		do   func()
	}{
		{"the table is deleted", func() { conn.DelTable(marksTable(Shape{}).table()) }},
		{"its rules are flushed", func() { conn.FlushTable(marksTable(Shape{}).table()) }},
		{"an address is deleted", func() {
			table := marksTable(Shape{VethPrefix: "eni"})
			if err := conn.SetDeleteElements(table.set(singleMap), singlesOf(map[netip.Prefix]int{addressOf(false, 1, 1): 1})); err != nil {
				t.Fatal(err)
			}
		}},
		{"a rule is added", func() {
			conn.InsertRule(&nftables.Rule{Table: marksTable(Shape{}).table(), Chain: &nftables.Chain{Name: "prerouting"}, Exprs: setMark(1, 1)})
		}},
		{"NAT's table is deleted", func() { conn.DelTable(nat.table()) }},
		{"NAT's rules are flushed", func() { conn.FlushTable(nat.table()) }},
		{"a rule is added to NAT's", func() {
			conn.InsertRule(&nftables.Rule{Table: nat.table(), Chain: &nftables.Chain{Name: "translating"}, Exprs: ret()})
		}},
		{"a chain is added to NAT's", func() { conn.AddChain(&nftables.Chain{Name: "theirs", Table: nat.table()}) }},
		{"the guard of egress addresses is deleted", func() { conn.DelTable(guard.table()) }},
		{"the ruleset is flushed", conn.FlushRuleset},
		{"rules are flushed", func() {
			for _, r := range k.actual(t, d).Rules {
				if r.Ours {
					if err := node.Handle.RuleDel(toKernel(r, false)); err != nil {
						t.Fatal(err)
					}
				}
			}
		}},
		{"an ENI's table is flushed", func() {
			for _, r := range k.actual(t, d).Routes {
				if err := k.apply(ctx, Op{Delete: true, Route: &r}, false); err != nil {
					t.Fatal(err)
				}
			}
		}},
	} {
		for quiet := false; !quiet; { // events of what was mended before
			select {
			case <-events:
				reconcile(t, k, d)
			case <-time.After(100 * time.Millisecond): // that no more come can't be awaited otherwise
				quiet = true
			}
		}
		began := time.Now()
		c.do()
		if err := conn.Flush(); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		select {
		case <-events:
		case <-time.After(5 * time.Second):
			t.Fatalf("%s: nothing is heard of it", c.what)
		}
		reconcile(t, k, d)
		t.Logf("%s: mended after %v", c.what, time.Since(began).Round(time.Millisecond)) // emulated and shared: no bound
		a := k.actual(t, d)
		if ops := Plan(d, a); len(ops) > 0 {
			t.Errorf("%s: left %v", c.what, ops)
		}
	}
	conn.AddTable(theirs)
	tables, err := conn.ListTables()
	if err != nil || !slices.ContainsFunc(tables, func(o *nftables.Table) bool { return o.Name == MarksTable }) {
		t.Errorf("%v, %v", tables, err)
	}
}

// TestPodsAreFoundWhoeverWiredThem: upstream's pods are routed by the main table.
func TestPodsAreFoundWhoeverWiredThem(t *testing.T) {
	node, peer := nstest.New(t), nstest.New(t)
	node.Veth(t, "eni1", peer, "peer")
	k := open(t, node)
	veth := node.Link(t, "eni1").Attrs().Index
	for _, r := range []struct {
		dst, gw string
		link    int
		table   int
	}{
		{"192.168.1.30/32", "", veth, PodsTable},
		{"192.168.1.31/32", "", veth, MainTable}, // a pod of upstream's
		{"192.168.1.32/32", "192.168.1.31", veth, MainTable},
		{"192.168.2.0/24", "", veth, MainTable},
		{"192.168.1.33/32", "", node.Link(t, "lo").Attrs().Index, MainTable}, // lo stands for any link that is no veth
		{"fd00:1::30/128", "", veth, PodsTable},
	} {
		route := netlink.Route{LinkIndex: r.link, Dst: ipNet(netip.MustParsePrefix(r.dst)), Table: r.table, Scope: netlink.SCOPE_LINK}
		if r.gw != "" {
			route.Scope, route.Gw, route.Flags = netlink.SCOPE_UNIVERSE, netip.MustParseAddr(r.gw).AsSlice(), int(netlink.FLAG_ONLINK)
		}
		node.Route(t, route)
	}
	got, err := k.Pods()
	want := []netip.Addr{netip.MustParseAddr("192.168.1.30"), netip.MustParseAddr("192.168.1.31"), netip.MustParseAddr("fd00:1::30")}
	if err != nil || !slices.Equal(got, want) {
		t.Fatalf("got %v, %v, want %v", got, err, want)
	}
}

// write sets a value below /proc/sys/net of the namespace.
func write(t *testing.T, ns *nstest.NS, key, value string) {
	t.Helper()
	ns.Do(t, func() error { return os.WriteFile("/proc/sys/net/"+key, []byte(value), 0) })
}

func families() []string { return []string{"IPv4", "IPv6"} }

func isIPv6(family string) bool { return strings.HasSuffix(family, "6") }

func inet(ipv6 bool) int {
	if ipv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// A kernel that is too busy to answer is not one that lacks something: nobody is told so, and it is asked again.
func TestABusyKernelIsNotOneThatLacksNFTables(t *testing.T) {
	ns := nstest.New(t)
	ns.Do(t, func() error {
		late, cancel := context.WithDeadline(context.Background(), time.Now().Add(-time.Second))
		defer cancel()
		var n nft
		defer n.close()
		if _, err := n.ruleTables(late); !errors.Is(err, errNoAnswer) || errors.Is(err, ErrNoNFTables) {
			t.Errorf("tables: %v", err)
		}
		if _, err := n.marksOf(late, Shape{VethPrefix: "eni"}); !errors.Is(err, errNoAnswer) || errors.Is(err, ErrNoNFTables) {
			t.Errorf("marks: %v", err)
		}
		if _, err := n.ruleTables(context.Background()); err != nil {
			t.Errorf("asked again: %v", err)
		}
		return nil
	})
}
