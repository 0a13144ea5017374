package branch

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller/events"
)

var since = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)

func slot(vlan int32, state ledgerv1.SlotState, pod string) ledgerv1.Slot {
	s := ledgerv1.Slot{VLANID: vlan, State: state, Since: metav1.NewMicroTime(since)}
	if pod != "" {
		s.PodUID, s.PodNamespace, s.PodName = types.UID(pod), "ns", pod
	}
	return s
}

func pods(names ...string) []corev1.Pod {
	var r []corev1.Pod
	for _, n := range names {
		r = append(r, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: n, UID: types.UID(n)}})
	}
	return r
}

func TestP22UsageNamesUsersAndNeverMoreThanTheCapacity(t *testing.T) {
	for _, tt := range []struct {
		what  string
		slots []ledgerv1.Slot
		pods  []corev1.Pod
		want  string
	}{
		{"full", []ledgerv1.Slot{slot(1, ledgerv1.Bound, "b"), slot(2, ledgerv1.Creating, "a"), slot(3, ledgerv1.Bound, "c")}, pods("a", "b", "c"),
			"node n has 3 of 3 branch ENIs in use by ns/a, ns/b, ns/c"},
		{"the demo's: a claim while a slot cools", []ledgerv1.Slot{slot(1, ledgerv1.Bound, "b"), slot(2, ledgerv1.Cooling, "gone"), slot(3, ledgerv1.Bound, "c")}, pods("a", "b", "c"),
			"node n has 3 of 3 branch ENIs in use by ns/a, ns/b, ns/c; 1 more is cooling down until 2026-01-02T03:05:00Z"},
		{"every state", []ledgerv1.Slot{slot(1, ledgerv1.Releasing, "x"), slot(2, ledgerv1.Deleting, ""), slot(3, ledgerv1.Occupied, ""), slot(4, ledgerv1.Free, "")}, nil,
			"node n has 0 of 3 branch ENIs in use; 1 more waits for the node to confirm its pod's end; 1 more is being deleted; 1 more is held by an ENI that is not in the ledger"},
		{"more pods than room", nil, pods("d", "c", "b", "a", "e"),
			"node n has 3 of 3 branch ENIs in use by ns/a, ns/b, ns/c; pods bound past that and waiting: 2"},
	} {
		u := usageOf(&ledgerv1.BranchLedgerSpec{NodeName: "n", Capacity: 3, Slots: tt.slots}, tt.pods, time.Minute)
		if got := say([]usage{u}, 0); got != tt.want {
			t.Errorf("%s:\n got %s\nwant %s", tt.what, got, tt.want)
		}
	}
}

func TestUsageFitsAnEventWhateverTheNamesAre(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var nodes []usage
		for n := range rapid.IntRange(1, 40).Draw(t, "nodes") {
			s := ledgerv1.BranchLedgerSpec{NodeName: fmt.Sprintf("node%d%s", n, strings.Repeat("n", rapid.IntRange(0, 240).Draw(t, "long"))), Capacity: int32(rapid.IntRange(0, 120).Draw(t, "capacity"))}
			var names []string
			for i := range rapid.IntRange(0, 125).Draw(t, "pods") {
				names = append(names, fmt.Sprintf("p%03d%s", i, strings.Repeat("p", rapid.IntRange(0, 240).Draw(t, "long"))))
			}
			nodes = append(nodes, usageOf(&s, pods(names...), time.Minute))
		}
		others := rapid.IntRange(0, 1).Draw(t, "more nodes") * 4973
		text := say(nodes, others)
		if len(text) > events.MaxMessage {
			t.Fatalf("%d bytes", len(text))
		}
		for _, u := range nodes {
			if len(u.users) > u.capacity {
				t.Fatalf("%d of %d in use", len(u.users), u.capacity)
			}
		}
		// With one node, everybody is accounted for: named, or counted.
		if u := nodes[0]; len(nodes) == 1 && others == 0 && len(u.users) > 0 {
			named, more := strings.Count(text, "ns/"), 0
			if i := strings.Index(text, " and "); i >= 0 {
				fmt.Sscanf(text[i:], " and %d more", &more)
			}
			if named == 0 || named+more != len(u.users) {
				t.Fatalf("%d named and %d more of %d: %s", named, more, len(u.users), text)
			}
		}
	})
}

func TestTheUsageOfManyNodesLooksAtThePodsOfThoseThatFitTheEvent(t *testing.T) {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), ledgerv1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	build := fake.NewClientBuilder().WithScheme(s).WithIndex(&corev1.Pod{}, IndexPodNode, func(client.Object) []string { return nil })
	const nodes = 300
	for n := range nodes {
		build.WithObjects(&ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("i-%04d", n)}, Spec: ledgerv1.BranchLedgerSpec{
			NodeName: fmt.Sprintf("n%04d", nodes-n), Capacity: 9, Slots: []ledgerv1.Slot{slot(1, ledgerv1.Bound, "p")},
		}})
	}
	looks, copied := 0, false
	r := &Pods{CoolDown: func(context.Context) time.Duration { return time.Minute }, Client: interceptor.NewClient(build.Build(), interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, l client.ObjectList, opts ...client.ListOption) error {
			switch l.(type) {
			case *corev1.PodList:
				looks++
			case *ledgerv1.BranchLedgerList:
				o := client.ListOptions{}
				o.ApplyOptions(opts)
				copied = o.UnsafeDisableDeepCopy == nil || !*o.UnsafeDisableDeepCopy
			}
			return c.List(ctx, l, opts...)
		},
	})}
	text, err := r.usage(t.Context())
	if err != nil || !strings.HasPrefix(text, "node n0001 has 1 of 9 branch ENIs in use by ns/p. node n0002 ") || !strings.HasSuffix(text, " more nodes") {
		t.Errorf("%q, %v", text, err)
	}
	shown, more := strings.Count(text, "branch ENIs in use"), 0
	if _, err := fmt.Sscanf(text[strings.LastIndex(text, "and "):], "and %d more nodes", &more); err != nil || shown+more != nodes {
		t.Errorf("%d shown and %d more of %d, %v", shown, more, nodes, err)
	}
	if looks > 30 || copied {
		t.Errorf("pods were listed %d times, ledgers copied: %t", looks, copied)
	}
}
