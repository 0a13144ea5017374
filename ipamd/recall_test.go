package ipamd

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/branchline-cni/branchline/ipamd/enis"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// box wires an address for a sandbox, as the executable does.
func (w *world) box(sandbox, addr string) {
	w.wire(addr)
	w.cloud.mu.Lock()
	defer w.cloud.mu.Unlock()
	if w.cloud.boxes == nil {
		w.cloud.boxes = map[netip.Addr]enis.Sandbox{}
	}
	w.cloud.boxes[netip.MustParseAddr(addr)] = enis.Sandbox{ContainerID: sandbox, IfName: "eth0"}
}

// result is what the runtime keeps of a sandbox, once its ADD has succeeded.
func (w *world) result(sandbox, pod, uid, addr string) {
	w.t.Helper()
	text := fmt.Sprintf(`{"kind":"cniCacheV1","containerId":%q,"config":"e30=","ifName":"eth0","networkName":"aws-cni",
"cniArgs":[["K8S_POD_NAMESPACE","default"],["K8S_POD_NAME",%q],["K8S_POD_UID",%q]],"result":{"cniVersion":"1.0.0","ips":[{"address":"%s/32"}]}}`, sandbox, pod, uid, addr)
	if err := os.MkdirAll(w.results(), 0o700); err != nil {
		w.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(w.results(), "aws-cni-"+sandbox+"-eth0"), []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// lose takes the agent's memory.
func (w *world) lose() {
	w.t.Helper()
	if err := os.Remove(filepath.Join(w.dir, "state.json")); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) damage() {
	w.t.Helper()
	if err := os.WriteFile(filepath.Join(w.dir, "state.json"), []byte("garbage"), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func TestP5PodsThatTheAgentHasForgottenAreKnownAgainByTheKernelAndTheRuntime(t *testing.T) {
	for name, lost := range map[string]func(*world){"the file is gone": (*world).lose, "the file is damaged": (*world).damage} {
		t.Run(name, func(t *testing.T) {
			gone := pod("b", "u2")
			w := newWorld(t, pod("a", "u1"), gone)
			s, kill := w.start()
			held := map[string]string{}
			for sandbox, pod := range map[string]string{"s1": "a", "s2": "b"} {
				uid := map[string]string{"a": "u1", "b": "u2"}[pod]
				addr := mustAdd(t, s, addRequest(pod, uid, sandbox)).GetRegular().GetAddress()
				w.box(sandbox, addr)
				w.result(sandbox, pod, uid, addr)
				held[sandbox] = addr
			}
			kill()
			lost(w)
			s, kill = w.start()
			for sandbox, addr := range held {
				eventually(t, "it is known whose and where the address of "+sandbox+" is", func() bool {
					al, ok := s.a.store.Get(store.Key{ContainerID: sandbox, IfName: "eth0"})
					return ok && al.Pod.UID != "" && al.Regular.Address.String() == addr && al.Regular.ENIID == "eni-1"
				})
			}
			if n := s.a.sizes(); n.orphans != 0 || n.assigned != 2 {
				t.Errorf("%d are held without an owner, %d assigned", n.orphans, n.assigned)
			}
			if e := w.events("PodsOfAnotherAgent"); len(e) != 0 {
				t.Errorf("the node says that pods are another agent's: %v", e)
			}
			if got := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(); got != held["s1"] {
				t.Errorf("the runtime asked again and got %s, after %s", got, held["s1"])
			}
			// What is recalled ends as anything does: by the runtime's DEL, or where that was not heard.
			for _, addr := range held {
				w.unroute(addr)
				w.unmark(addr)
			}
			if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
				t.Fatal(err)
			}
			w.delete(gone)
			w.pass(time.Hour)
			s.a.changed.Fire()
			eventually(t, "both have ended", func() bool { return len(s.a.store.View().Allocations) == 0 })
			kill()
			s, _ = w.start()
			if got := s.a.store.View().Allocations; len(got) != 0 {
				t.Errorf("after one more start these are back: %+v", got)
			}
		})
	}
}

func TestNothingIsRecalledOfWhichTheKernelAndTheRuntimeDoNotSayTheSame(t *testing.T) {
	const other = "192.168.1.99"
	for name, change := range map[string]func(w *world, addr string){
		"the runtime has no result":      func(w *world, _ string) { must(w.t, os.RemoveAll(w.results())) },
		"the result has another address": func(w *world, _ string) { w.result("s1", "a", "u1", other) },
		"the result is cut short":        func(w *world, _ string) { w.cut("s1", `"result"`) },
		"the result names no pod":        func(w *world, addr string) { w.result("s1", "", "u1", addr) },
		"the link is another sandbox's":  func(w *world, addr string) { w.box("s2", addr) },
		"two links have the address":     func(w *world, addr string) { w.cloud.boxes[netip.MustParseAddr(addr)] = enis.Sandbox{} },
		"the link has no mark":           func(w *world, addr string) { delete(w.cloud.boxes, netip.MustParseAddr(addr)) },
		"the result is left over, and no link": func(w *world, addr string) {
			w.unroute(addr)
			w.unmark(addr)
			delete(w.cloud.boxes, netip.MustParseAddr(addr))
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
			s, kill := w.start()
			addr := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
			w.box("s1", addr)
			w.result("s1", "a", "u1", addr)
			kill()
			w.damage()
			change(w, addr)
			wired := len(w.routing.pods) > 0
			s, _ = w.start()
			eventually(t, "it is ready", s.a.ready.Load)
			if got := s.a.store.View().Allocations; len(got) != 0 {
				t.Errorf("recalled: %+v", got)
			}
			if n := s.a.sizes(); (n.orphans == 1) != wired {
				t.Errorf("%d addresses are held without an owner; the address is wired: %t", n.orphans, wired)
			}
			if got := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress(); wired && got == addr {
				t.Errorf("%s is wired, and given to another pod", got)
			}
		})
	}
}

// cut shortens the runtime's result before a word.
func (w *world) cut(sandbox, before string) {
	w.t.Helper()
	path := filepath.Join(w.results(), "aws-cni-"+sandbox+"-eth0")
	b, err := os.ReadFile(path)
	must(w.t, err)
	head, _, _ := strings.Cut(string(b), before)
	must(w.t, os.WriteFile(path, []byte(head), 0o600))
}
