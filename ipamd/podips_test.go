package ipamd

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/store"
)

// says waits until the pod's annotation is so; there is none where want is nil.
func (w *world) says(what, name string, want *string) {
	w.t.Helper()
	eventually(w.t, what, func() bool {
		var p corev1.Pod
		if err := w.api.Get(context.Background(), client.ObjectKey{Namespace: "default", Name: name}, &p); err != nil {
			return false
		}
		text, ok := p.Annotations[kube.PodIPsKey]
		return want == nil && !ok || want != nil && ok && text == *want
	})
}

func TestPodsSayTheirAddressWhileTheyHoldIt(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
	w.env["ANNOTATE_POD_IP"] = "true"
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	first, released := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress(), ""
	w.says("the address", "a", &first)
	// The API server's absence keeps no pod waiting, and what was missed is made up for.
	w.noAPI.Store(true)
	second := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress()
	w.noAPI.Store(false)
	w.says("what was missed", "b", &second)
	kill()
	s, _ = w.start()
	eventually(t, "ready again", s.a.ready.Load)
	if _, err := s.Del(t.Context(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	w.says("released", "a", &released)
	w.says("the other one's stays", "b", &second)
	again := mustAdd(t, s, addRequest("a", "u1", "s3")).GetRegular().GetAddress()
	w.says("the address of the next sandbox", "a", &again)
}

func TestWithoutTheVariableNoPodIsAnnotated(t *testing.T) {
	w := newWorld(t, pod("a", "u1"))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("a", "u1", "s1"))
	w.says("nothing", "a", nil)
}

func TestAnnotationsAreComparedWithWhoHoldsWhat(t *testing.T) {
	held := func(uid, address string, since int64) store.Allocation {
		return store.Allocation{Pod: store.Pod{UID: uid}, Since: time.Unix(since, 0), Regular: &store.Regular{Address: netip.MustParseAddr(address)}}
	}
	says := func(name, uid, text string) kube.PodIPs {
		return kube.PodIPs{Pod: kube.Pod{Name: name, UID: uid}, Text: text}
	}
	static := says("static", "api", "")
	static.MirrorOf = "kubelet"
	pods := []kube.PodIPs{says("new", "1", ""), says("right", "2", "10.0.0.2"), says("moved", "3", "10.0.0.9"), says("over", "4", "10.0.0.4"), says("never", "5", ""), static}
	branch := store.Allocation{Pod: store.Pod{UID: "1"}, Since: time.Unix(5, 0), Branch: &store.Branch{Address: netip.MustParseAddr("10.0.7.7")}}
	var got []string
	for _, w := range podIPsToWrite(pods, []store.Allocation{branch, held("2", "10.0.0.2", 1), held("3", "10.0.0.4", 9), held("3", "10.0.0.9", 8), held("kubelet", "10.0.0.5", 1)}) {
		got = append(got, w.pod.Name+"="+w.text)
	}
	if want := []string{"new=10.0.7.7", "moved=10.0.0.4", "over=", "static=10.0.0.5"}; !slices.Equal(got, want) {
		t.Errorf("to write %q, want %q", got, want)
	}
}
