//go:build kernel

package egress

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// node is a worker node and what it is cabled to, which stands for the other family's whole Internet.
type node struct {
	t        *testing.T
	family   Family
	host     *nstest.NS
	internet *nstest.NS
	own      string // the node's address in the family
	far      string // an address of the Internet
	config   map[string]any
	before   []string
}

func newNode(t *testing.T, f Family) *node {
	t.Helper()
	n := &node{t: t, family: f, host: nstest.New(t), internet: nstest.New(t)}
	n.host.Veth(t, "eth0", n.internet, "p0")
	subnet, prevAddress := "169.254.172.0/22", "2600:1f16::7/128"
	if f == IPv4 {
		n.own, n.far = "192.168.10.10", "198.51.100.1"
		n.host.Address(n.t, "eth0", n.own+"/24")
		n.internet.Address(n.t, "p0", "192.168.10.1/24")
		n.internet.Address(n.t, "lo", n.far+"/32")
		n.host.Route(t, netlink.Route{Dst: ipNet(f.Default()), Gw: net.ParseIP("192.168.10.1")})
		n.host.Sysctl(t, "ipv4/ip_forward", "1")
	} else {
		n.own, n.far, subnet, prevAddress = "2600::10", "2600:1::1", "fd00::ac:00/118", "192.168.10.77/32"
		n.host.Address(n.t, "eth0", n.own+"/64")
		n.internet.Address(n.t, "p0", "2600::1/64")
		n.internet.Address(n.t, "lo", n.far+"/128")
		n.host.Route(t, netlink.Route{Dst: ipNet(f.Default()), Gw: net.ParseIP("2600::1")})
		n.host.Do(t, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0) })
	}
	n.config = map[string]any{
		"cniVersion": "1.1.0", "name": "aws-cni", "type": "egress-cni", "mtu": "1500", "enabled": "true", "randomizeSNAT": "prng",
		"ipam":          map[string]any{"type": "host-local", "ranges": []any{[]any{map[string]string{"subnet": subnet}}}, "dataDir": t.TempDir()},
		"pluginLogFile": filepath.Join(t.TempDir(), "egress.log"), "pluginLogLevel": "debug",
		"prevResult": map[string]any{
			"cniVersion": "1.1.0", "interfaces": []any{map[string]string{"name": "enib5faff8a083"}, map[string]string{"name": "eth0", "sandbox": "/x"}},
			"ips": []any{map[string]any{"interface": 1, "address": prevAddress}},
		},
	}
	n.before = n.host.Snapshot(n.t)
	return n
}

func (n *node) wantClean() {
	n.t.Helper()
	after := n.host.Snapshot(n.t)
	for _, l := range n.before {
		if !slices.Contains(after, l) {
			n.t.Errorf("gone from the host: %s", l)
		}
	}
	for _, l := range after {
		if !slices.Contains(n.before, l) {
			n.t.Errorf("left on the host: %s", l)
		}
	}
	if got := n.reserved(); len(got) > 0 {
		n.t.Errorf("addresses not given back: %q", got)
	}
}

func (n *node) reserved() (out []string) {
	entries, _ := os.ReadDir(filepath.Join(n.config["ipam"].(map[string]any)["dataDir"].(string), "aws-cni"))
	for _, e := range entries {
		if _, err := netip.ParseAddr(e.Name()); err == nil {
			out = append(out, e.Name())
		}
	}
	return out
}

// call runs the executable as a runtime does.
func (n *node) call(verb, id, netns string, change func(map[string]any)) ([]byte, error) {
	n.t.Helper()
	config := map[string]any{}
	for k, v := range n.config {
		config[k] = v
	}
	if change != nil {
		change(config)
	}
	stdin, err := json.Marshal(config)
	if err != nil {
		n.t.Fatal(err)
	}
	bin := filepath.Dir(os.Getenv("BRANCHLINE_AWS_CNI"))
	cmd := exec.Command(filepath.Join(bin, "egress-cni"))
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+verb, "CNI_CONTAINERID="+id, "CNI_IFNAME=eth0", "CNI_NETNS="+netns, "CNI_PATH="+bin)
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err = n.host.Try(cmd.Run)
	if err != nil {
		var e types.Error
		if json.Unmarshal(stdout.Bytes(), &e) == nil && e.Code != 0 {
			return nil, &e
		}
		return nil, fmt.Errorf("%w: %s %s", err, stdout.String(), stderr.String())
	}
	return stdout.Bytes(), nil
}

func (n *node) mustAdd(id string, pod *nstest.NS) *current.Result {
	n.t.Helper()
	out, err := n.call("ADD", id, pod.Path(), nil)
	if err != nil {
		n.t.Fatalf("ADD: %v", err)
	}
	r := &current.Result{}
	if err := json.Unmarshal(out, r); err != nil {
		n.t.Fatalf("%v: %s", err, out)
	}
	return r
}

func (n *node) mustDel(id, netns string) {
	n.t.Helper()
	if _, err := n.call("DEL", id, netns, func(c map[string]any) { delete(c, "prevResult") }); err != nil {
		n.t.Errorf("DEL: %v", err)
	}
}

// ask connects to a server in another namespace and returns whom the server saw.
func (n *node) ask(from, server *nstest.NS, address string) (string, error) {
	n.t.Helper()
	var l net.Listener
	server.Do(n.t, func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		return err
	})
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		fmt.Fprintln(c, c.RemoteAddr())
		c.Close()
	}()
	var seen string
	err := from.Try(func() error {
		d := net.Dialer{Timeout: 2 * time.Second}
		c, err := d.Dial("tcp", l.Addr().String())
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(2 * time.Second))
		_, err = fmt.Fscanln(c, &seen)
		return err
	})
	host, _, _ := net.SplitHostPort(seen)
	return host, err
}

func single(ip net.IP) netip.Prefix {
	a := addrOf(ip)
	return netip.PrefixFrom(a, a.BitLen())
}

func TestPodsReachTheOtherFamilyFromTheNodesAddress(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		t.Run(fmt.Sprintf("IPv%d", f), func(t *testing.T) {
			n := newNode(t, f)
			if _, err := n.call("STATUS", "", "", nil); err != nil {
				t.Errorf("STATUS: %v", err)
			}
			pod, other := nstest.New(t), nstest.New(t)
			pod.Do(t, func() error { return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0) }) // as some runtimes have it
			podBefore := pod.Snapshot(n.t)
			r := n.mustAdd("box-1", pod)
			again := n.mustAdd("box-1", pod)
			if r.IPs[1].Address.String() != again.IPs[1].Address.String() {
				t.Errorf("a repeated ADD gives %s, then %s", r.IPs[1].Address, again.IPs[1].Address)
			}
			n.mustAdd("box-2", other)
			seen, err := n.ask(pod, n.internet, n.far)
			if err != nil || seen != n.own {
				t.Errorf("the Internet saw %q, %v; want the node's %s", seen, err, n.own)
			}
			address := r.IPs[1].Address.IP.String()
			for name, from := range map[string]*nstest.NS{"another pod": other, "the Internet": n.internet} {
				if from == n.internet {
					via := net.ParseIP(n.own)
					n.internet.Route(t, netlink.Route{Dst: ipNet(single(r.IPs[1].Address.IP)), Gw: via})
				}
				if seen, err := n.ask(from, pod, address); err == nil {
					t.Errorf("%s got in by the egress address, as %s", name, seen)
				}
			}
			check := func() error {
				_, err := n.call("CHECK", "box-1", pod.Path(), func(c map[string]any) { c["prevResult"] = r })
				return err
			}
			if err := check(); err != nil {
				t.Errorf("CHECK: %v", err)
			}
			link := n.host.Link(t, r.Interfaces[2].Name)
			if link == nil {
				t.Fatalf("no link %s", r.Interfaces[2].Name)
			}
			if err := n.host.Handle.RouteDel(route(link, single(r.IPs[1].Address.IP), netip.Addr{})); err != nil {
				t.Fatal(err)
			}
			if err := check(); err == nil || !strings.Contains(err.Error(), "route") || !strings.Contains(err.Error(), address) {
				t.Errorf("CHECK after the route's loss: %v", err)
			}
			for range 2 {
				n.mustDel("box-1", pod.Path())
				n.mustDel("box-2", "")
			}
			n.wantClean()
			if after := pod.Snapshot(n.t); !slices.Equal(podBefore, after) {
				t.Errorf("left in the pod: %q, before %q", after, podBefore)
			}
		})
	}
}

func TestAFailedADDLeavesNothing(t *testing.T) {
	for _, f := range []Family{IPv4, IPv6} {
		n := newNode(t, f)
		pod := nstest.New(t)
		pod.Veth(t, f.PodLink(), pod, "somebodys") // the name is taken
		_, err := n.call("ADD", "box-1", pod.Path(), nil)
		if err == nil || !strings.Contains(err.Error(), f.PodLink()) {
			t.Errorf("ADD: %v", err)
		}
		n.wantClean()
		if _, err := n.call("ADD", "box-1", "/proc/self/fd/9999", nil); err == nil {
			t.Error("ADD into no namespace succeeded")
		}
		n.wantClean()
		n.mustDel("box-1", "")
	}
}

func TestAPodThatHasTheFamilyIsPassedOn(t *testing.T) {
	n := newNode(t, IPv6)
	pod := nstest.New(t)
	before := pod.Snapshot(n.t)
	for name, prepare := range map[string]func(map[string]any){
		"disabled": func(c map[string]any) { c["enabled"] = "false" },
		"branch pod": func(c map[string]any) {
			c["prevResult"] = map[string]any{"cniVersion": "1.1.0", "interfaces": []any{map[string]string{"name": "vlan.eth.7"}}}
		},
		"an address in the pod": func(map[string]any) {
			pod.Veth(t, "net1", pod, "net1peer")
			pod.Address(n.t, "net1", "2600:2::7/128")
			before = pod.Snapshot(n.t)
		},
	} {
		out, err := n.call("ADD", "box-1", pod.Path(), prepare)
		if err != nil || strings.Contains(string(out), HostLinkPrefix) || !strings.Contains(string(out), `"interfaces"`) {
			t.Errorf("%s: %s, %v", name, out, err)
		}
		n.wantClean()
		if after := pod.Snapshot(n.t); !slices.Equal(before, after) {
			t.Errorf("%s: in the pod are now %q", name, after)
		}
	}
}

func TestGCTakesOnlyWhatIsOursAndNotValid(t *testing.T) {
	n := newNode(t, IPv4)
	pods := map[string]*nstest.NS{"box-1": nstest.New(t), "box-2": nstest.New(t)}
	for id, pod := range pods {
		n.mustAdd(id, pod)
	}
	n.host.Veth(t, "egr4somebodys00", n.internet, "p1") // a name like ours
	gc := func(valid ...string) {
		t.Helper()
		var list []map[string]string
		for _, id := range valid {
			list = append(list, map[string]string{"containerID": id, "ifname": "eth0"})
		}
		if _, err := n.call("GC", "", "", func(c map[string]any) { c["cni.dev/valid-attachments"] = list; delete(c, "prevResult") }); err != nil {
			t.Errorf("GC: %v", err)
		}
	}
	gc("box-1", "box-2")
	if len(n.reserved()) != 2 {
		t.Errorf("after GC with both valid: %q", n.reserved())
	}
	gc("box-2")
	for id, want := range map[string]bool{"box-1": false, "box-2": true} {
		if got := n.host.Link(t, Owner{id, "eth0"}.HostLink(IPv4)) != nil; got != want {
			t.Errorf("%s is there: %t, want %t", id, got, want)
		}
	}
	if seen, err := n.ask(pods["box-2"], n.internet, n.far); err != nil || seen != n.own {
		t.Errorf("the valid pod: %q, %v", seen, err)
	}
	gc()
	if n.host.Link(t, "egr4somebodys00") == nil {
		t.Error("somebody else's link was taken")
	}
	if err := n.host.Handle.LinkDel(n.host.Link(t, "egr4somebodys00")); err != nil {
		t.Fatal(err)
	}
	n.wantClean()
}

func TestManyADDsAtOnceShareNoAddress(t *testing.T) {
	n := newNode(t, IPv6)
	const count = 12
	var wg sync.WaitGroup
	var mu sync.Mutex
	addresses := map[string]bool{}
	pods := make([]*nstest.NS, count)
	for i := range pods {
		pods[i] = nstest.New(t)
	}
	for i := range pods {
		wg.Go(func() {
			out, err := n.call("ADD", fmt.Sprint("box-", i), pods[i].Path(), nil)
			var r current.Result
			if err == nil {
				err = json.Unmarshal(out, &r)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				t.Errorf("ADD %d: %v", i, err)
				return
			}
			addresses[r.IPs[1].Address.String()] = true
		})
	}
	wg.Wait()
	if len(addresses) != count {
		t.Errorf("%d addresses for %d pods", len(addresses), count)
	}
	for i := range pods {
		n.mustDel(fmt.Sprint("box-", i), "")
	}
	n.wantClean()
}
