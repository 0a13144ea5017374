//go:build kernel

package eni

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"

	"github.com/branchline-cni/branchline/plugins/nstest"
)

// withIptables gives the chained plugins an iptables, as nodes have one, beside what PATH has: Debian's packages link
// it only when they are installed.
func withIptables(t *testing.T) {
	t.Helper()
	real, err := exec.LookPath("iptables-nft")
	if err != nil {
		t.Fatalf("no iptables-nft in PATH: run these tests by go run ./test/kernel ./plugins/...: %v", err)
	}
	dir := t.TempDir()
	if err := os.Symlink(real, filepath.Join(dir, "iptables")); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

// chained is a network of our executable and others behind it.
func (n *node) chained(plugins ...map[string]any) *libcni.NetworkConfigList {
	n.t.Helper()
	all := []any{n.config}
	for _, p := range plugins {
		all = append(all, p)
	}
	text, err := json.Marshal(map[string]any{"cniVersion": "1.0.0", "name": "aws-cni", "disableCheck": true, "plugins": all})
	if err != nil {
		n.t.Fatal(err)
	}
	list, err := libcni.ConfListFromBytes(text)
	if err != nil {
		n.t.Fatal(err)
	}
	return list
}

// sayHello serves one line on a port of the namespace, by tcp4 or tcp6, until the test ends.
func sayHello(t *testing.T, ns *nstest.NS, network string, port int, line string) {
	t.Helper()
	var l net.Listener
	ns.Do(t, func() (err error) {
		l, err = net.Listen(network, fmt.Sprintf(":%d", port))
		return err
	})
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, line)
			c.Close()
		}
	}()
}

func hear(ns *nstest.NS, address string) (line string, err error) {
	err = ns.Try(func() error {
		d := net.Dialer{Timeout: 3 * time.Second}
		c, err := d.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(3 * time.Second))
		b, err := io.ReadAll(c)
		line = string(b)
		return err
	})
	return line, err
}

// What users call hostPort: portmap behind our ADD, on a node with iptables. TestTheWholeChainPassesEveryVerb has nft.
func TestHostPortsReachThePodByIptables(t *testing.T) {
	withIptables(t)
	n := newNode(t)
	n.agent.start(t)
	// It has several addresses of a family: host ports are of the first interface's.
	n.agent.set(goldenPod, several(regularReply(regularIP, 254), "192.168.64.77", "192.168.96.77"))
	pod := nstest.New(t)
	s := newSandbox("sandbox-1", goldenPod, pod)
	list := n.chained(map[string]any{"type": "portmap", "capabilities": map[string]bool{"portMappings": true}, "snat": true})
	rc := s.runtimeConf()
	rc.CapabilityArgs = map[string]any{"portMappings": []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}}}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	n.host.Do(t, func() error {
		_, err := n.cni().AddNetworkList(ctx, list, rc)
		return err
	})
	sayHello(t, pod, "tcp4", 80, "hello")
	at := net.JoinHostPort(nodeAddress, "8080")
	if got, err := hear(n.vpc, at); err != nil || got != "hello" {
		t.Errorf("from elsewhere: %q, %v", got, err)
	}
	if got, err := hear(n.host, at); err != nil || got != "hello" {
		t.Errorf("from the node: %q, %v", got, err)
	}
	for range 2 {
		n.host.Do(t, func() error { return n.cni().DelNetworkList(ctx, list, rc) })
	}
	if got, err := hear(n.vpc, at); err == nil {
		t.Errorf("after DEL: %q", got)
	}
	n.wantClean()
}
