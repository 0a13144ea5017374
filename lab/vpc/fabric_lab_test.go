//go:build lab

package vpc_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"

	"github.com/branchline-cni/branchline/lab/artifacts"
	"github.com/branchline-cni/branchline/lab/vpc"
	"github.com/branchline-cni/branchline/lab/vpc/dns"
)

const (
	clientENI = "eni-client"
	serverENI = "eni-server"
	clientIP  = "192.168.0.10"
	serverIP  = "192.168.32.20"
)

var (
	clientMAC = net.HardwareAddr{2, 0, 0, 0, 1, 1}
	serverMAC = net.HardwareAddr{2, 0, 0, 0, 1, 2}
)

// lab is a fabric with a client and a server, each a network namespace of this machine's own kernel.
type lab struct {
	t              *testing.T
	fabric         *vpc.Fabric
	flows          *lockedText
	busybox        string
	client, server string // namespaces' paths
}

type lockedText struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedText) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func topology(serverRules ...vpc.Rule) *vpc.Topology {
	eni := func(id, subnet, ip string, mac net.HardwareAddr, group string) vpc.ENI {
		return vpc.ENI{ID: id, SubnetID: subnet, MAC: mac, Addresses: []netip.Addr{netip.MustParseAddr(ip)}, Groups: []string{group}, SourceDestCheck: true, InstanceID: "i-" + id}
	}
	out := []vpc.Rule{{ID: "sgr-out", Protocol: -1, FromPort: -1, ToPort: -1, CIDR: netip.MustParsePrefix("0.0.0.0/0")}}
	return &vpc.Topology{
		CIDRs: []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16")},
		Subnets: []vpc.Subnet{
			{ID: "subnet-1", CIDR: netip.MustParsePrefix("192.168.0.0/19")},
			{ID: "subnet-2", CIDR: netip.MustParsePrefix("192.168.32.0/19")},
		},
		ENIs:   []vpc.ENI{eni(clientENI, "subnet-1", clientIP, clientMAC, "sg-client"), eni(serverENI, "subnet-2", serverIP, serverMAC, "sg-server")},
		Groups: []vpc.SecurityGroup{{ID: "sg-client", Egress: out}, {ID: "sg-server", Egress: out, Ingress: serverRules}},
	}
}

func fromClients(proto, from, to int) vpc.Rule {
	return vpc.Rule{ID: fmt.Sprintf("sgr-%d-%d", proto, from), Protocol: proto, FromPort: from, ToPort: to, Group: "sg-client"}
}

func newLab(t *testing.T) *lab {
	t.Helper()
	cache, err := artifacts.Open()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, flows: &lockedText{}}
	if l.busybox, err = cache.Busybox(t.Context()); err != nil {
		t.Fatal(err)
	}
	services := dns.Services(netip.MustParseAddr("192.168.0.2"), func(name string) []netip.Addr {
		if name == "db.lab.internal" {
			return []netip.Addr{netip.MustParseAddr(serverIP)}
		}
		return nil
	}, nil)
	services = append(services, vpc.Service{
		Addr: netip.MustParseAddr("169.254.169.254"), Port: 80, Net: "tcp",
		ServeTCP: func(l net.Listener, eniID string) {
			http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, eniID) }))
		},
	})
	l.fabric = vpc.New(vpc.Options{FlowLog: l.flows, FlowInterval: -1, Services: services})
	t.Cleanup(func() {
		if err := l.fabric.Close(); err != nil {
			t.Error(err)
		}
	})
	l.client = l.namespace("c", clientENI, clientMAC)
	l.server = l.namespace("s", serverENI, serverMAC)
	return l
}

// namespace makes a namespace with the ENI as its eth0.
func (l *lab) namespace(suffix, eniID string, mac net.HardwareAddr) string {
	l.t.Helper()
	name := fmt.Sprintf("blvpc-%d-%s", os.Getpid(), suffix)
	l.command("ip", "netns", "add", name)
	l.t.Cleanup(func() { exec.Command("ip", "netns", "del", name).Run() })
	path := "/run/netns/" + name
	link, err := vpc.TAPLink(path, "eth0", mac, vpc.MTU)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := l.fabric.AddPort(eniID, link); err != nil {
		l.t.Fatal(err)
	}
	l.in(path, "ip", "link", "set", "lo", "up")
	l.in(path, "ip", "link", "set", "eth0", "up")
	return path
}

func (l *lab) static(path, addr, gateway string) {
	l.t.Helper()
	l.in(path, "ip", "addr", "add", addr, "dev", "eth0")
	l.in(path, "ip", "route", "add", "default", "via", gateway)
}

func (l *lab) command(argv ...string) string {
	l.t.Helper()
	out, err := l.try(argv...)
	if err != nil {
		l.t.Fatalf("%s: %v\n%s\ndrops: %v", strings.Join(argv, " "), err, out, l.fabric.Drops())
	}
	return out
}

func (l *lab) try(argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), 20*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput()
	return string(out), err
}

func (l *lab) in(path string, argv ...string) string {
	l.t.Helper()
	return l.command(append([]string{"nsenter", "--net=" + path}, argv...)...)
}

// within runs f with its thread in the namespace: sockets made there belong to it.
func within[T any](t *testing.T, path string, f func() (T, error)) (T, error) {
	t.Helper()
	type result struct {
		v   T
		err error
	}
	c := make(chan result)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.GetFromPath(path)
		if err == nil {
			defer ns.Close()
			err = netns.Set(ns)
		}
		if err != nil {
			var zero T
			c <- result{zero, err}
			return
		}
		v, err := f()
		c <- result{v, err}
	}()
	r := <-c
	return r.v, r.err
}

// echo serves TCP on the server's port and returns what it gets.
func (l *lab) echo(port int) {
	l.t.Helper()
	ln, err := within(l.t, l.server, func() (net.Listener, error) { return net.Listen("tcp4", fmt.Sprintf("%s:%d", serverIP, port)) })
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
}

func (l *lab) dial(port int, timeout time.Duration) (net.Conn, error) {
	return within(l.t, l.client, func() (net.Conn, error) {
		return net.DialTimeout("tcp4", fmt.Sprintf("%s:%d", serverIP, port), timeout)
	})
}

func roundTrip(c net.Conn, size int) error {
	c.SetDeadline(time.Now().Add(20 * time.Second))
	out := make([]byte, size)
	for i := range out {
		out[i] = byte(i * 7)
	}
	errc := make(chan error, 1)
	go func() {
		_, err := c.Write(out)
		errc <- err
	}()
	in := make([]byte, size)
	if _, err := io.ReadFull(c, in); err != nil {
		return err
	}
	if string(in) != string(out) {
		return errors.New("the echo differs")
	}
	return <-errc
}

func TestTwoNamespacesTalkThroughASecurityGroupUntilItsRuleGoes(t *testing.T) {
	l := newLab(t)
	l.static(l.client, clientIP+"/19", "192.168.0.1")
	l.static(l.server, serverIP+"/19", "192.168.32.1")
	l.fabric.Apply(topology(fromClients(1, -1, -1), fromClients(6, 5432, 5432)))

	l.in(l.client, l.busybox, "ping", "-c", "2", serverIP)
	l.in(l.client, l.busybox, "ping", "-c", "1", "-s", "8973", serverIP)  // 9001 bytes in one packet
	l.in(l.client, l.busybox, "ping", "-c", "1", "-s", "20000", serverIP) // in fragments
	if out, err := l.try("nsenter", "--net="+l.server, l.busybox, "ping", "-c", "1", "-W", "1", clientIP); err == nil {
		t.Errorf("the client has no ingress rule and was pinged: %s", out)
	}

	l.echo(5432)
	old, err := l.dial(5432, 5*time.Second)
	if err != nil {
		t.Fatalf("%v; drops: %v", err, l.fabric.Drops())
	}
	defer old.Close()
	start := time.Now()
	const size = 32 << 20
	if err := roundTrip(old, size); err != nil {
		t.Fatal(err)
	}
	t.Logf("echo of %d MiB: %.0f Mbit/s each way", size>>20, float64(size)*8/1e6/time.Since(start).Seconds())

	l.fabric.Apply(topology(fromClients(1, -1, -1)))
	if err := roundTrip(old, 1000); err != nil {
		t.Errorf("the tracked connection ended with its rule: %v", err)
	}
	c, err := l.dial(5432, 1500*time.Millisecond)
	var ne net.Error
	if err == nil {
		c.Close()
	}
	if !errors.As(err, &ne) || !ne.Timeout() {
		t.Fatalf("a new connection after the rule was taken away: %v, want a time-out", err)
	}
	if err := l.fabric.Flush(); err != nil {
		t.Fatal(err)
	}
	reject := regexp.MustCompile(`2 111122223333 eni-server 192\.168\.0\.10 192\.168\.32\.20 \d+ 5432 6 \d+ \d+ \d+ \d+ REJECT OK`)
	if !reject.MatchString(l.flows.String()) {
		t.Errorf("no REJECT in the flow log:\n%s", l.flows)
	}
	drops := l.fabric.Drops()
	last := drops[len(drops)-1]
	if last.ENI != serverENI || last.Direction != vpc.Ingress || last.Reason != vpc.NoRule || last.TCPFlags != "SYN" || len(last.Rules) != 1 {
		t.Errorf("the last drop is %s", last)
	}
}

func TestDHCPAndServicesWorkForTheKernelsOwnClients(t *testing.T) {
	l := newLab(t)
	l.fabric.Apply(topology())
	dir := t.TempDir()
	lease, script := filepath.Join(dir, "lease"), filepath.Join(dir, "script")
	if err := os.WriteFile(script, []byte(`#!/bin/sh
[ "$1" = bound ] || exit 0
ip addr add "$ip/$mask" dev "$interface"
ip route add default via "$router"
echo "$ip/$mask $router $dns $mtu $hostname" > `+lease+"\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	l.in(l.client, l.busybox, "udhcpc", "-i", "eth0", "-s", script, "-q", "-n", "-f", "-t", "5", "-T", "1", "-O", "mtu", "-O", "hostname")
	got, err := os.ReadFile(lease)
	if err != nil {
		t.Fatal(err)
	}
	if want := "192.168.0.10/19 192.168.0.1 192.168.0.2 9001 ip-192-168-0-10\n"; string(got) != want {
		t.Fatalf("lease %q, want %q", got, want)
	}
	if got := l.in(l.client, l.busybox, "wget", "-q", "-O", "-", "http://169.254.169.254/"); got != clientENI {
		t.Errorf("the service answered %q", got)
	}
	if got := l.in(l.client, l.busybox, "nslookup", "-type=a", "db.lab.internal", "192.168.0.2"); !strings.Contains(got, serverIP) {
		t.Errorf("DNS answered %q", got)
	}
	l.in(l.client, l.busybox, "ping", "-c", "1", "169.254.169.254")
}

func TestATAPIsMadeInItsNamespaceOnlyAndGoesWithItsLink(t *testing.T) {
	l := newLab(t)
	if got := l.in(l.client, "ip", "-o", "link", "show", "eth0"); !strings.Contains(got, clientMAC.String()) || !strings.Contains(got, "mtu 9001") {
		t.Errorf("the device is %s", got)
	}
	if _, err := vpc.TAPLink(l.client, "eth0", clientMAC, vpc.MTU); err == nil || !strings.Contains(err.Error(), "make TAP device eth0 in network namespace "+l.client) {
		t.Errorf("a second device of that name: %v", err)
	}
	if _, err := vpc.TAPLink(filepath.Join(t.TempDir(), "none"), "eth0", clientMAC, vpc.MTU); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no such namespace: %v", err)
	}
	if err := l.fabric.RemovePort(clientENI); err != nil {
		t.Fatal(err)
	}
	if out, err := l.try("nsenter", "--net="+l.client, "ip", "link", "show", "eth0"); err == nil {
		t.Errorf("after RemovePort: %s", out)
	}
}
