//go:build kernel

package eni

import (
	"net"
	"testing"

	"github.com/branchline-cni/branchline/plugins/nstest"
	"github.com/branchline-cni/branchline/rpc"
)

// TestNoLinkThatIsMadeStaysDown: EKS's node monitoring takes a link that stays down for a broken node.
func TestNoLinkThatIsMadeStaysDown(t *testing.T) {
	n := newNode(t)
	n.agent.start(t)
	down := func() map[string]bool {
		t.Helper()
		links, err := n.host.Handle.LinkList()
		if err != nil {
			t.Fatal(err)
		}
		out := map[string]bool{}
		for _, l := range links {
			if a := l.Attrs(); a.Flags&net.FlagLoopback == 0 && a.Flags&net.FlagUp == 0 {
				out[a.Name] = true
			}
		}
		return out
	}
	before := down() // a kernel's own, as tunl0
	up := func(when string) {
		t.Helper()
		for name := range down() {
			if !before[name] {
				t.Errorf("%s: link %s is down", when, name)
			}
		}
	}
	n.attachBranch(7, branchMAC, branchIP)
	const mac8, ip8 = "06:20:0d:3c:5f:bd", "192.168.47.65"
	n.attachBranch(8, mac8, ip8)
	for _, c := range []struct {
		name  string
		reply *rpc.AddReply
	}{
		{"strict", branchReply(7, branchMAC, branchIP, n.trunk())}, {"standard", standard(branchReply(8, mac8, ip8, n.trunk()))}, {"regular", regularReply(regularIP, 2)},
	} {
		n.agent.set("shop/"+c.name, c.reply)
		pod := nstest.New(t)
		box := newSandbox("sandbox-"+c.name, "shop/"+c.name, pod)
		n.mustAdd(box)
		up("with a " + c.name + " pod")
		pod.Close() // the sandbox dies before its DEL
		n.mustDel(box)
		up("after a " + c.name + " pod")
	}
}
