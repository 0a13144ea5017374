package ipamd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/ipamd/hostnet"
	"github.com/branchline-cni/branchline/ipamd/kube"
	"github.com/branchline-cni/branchline/ipamd/podeni/annotation"
	"github.com/branchline-cni/branchline/rpc"
)

func pod(name, uid string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(uid)}, Spec: corev1.PodSpec{NodeName: nodeName, Containers: []corev1.Container{{Name: "c"}}}}
}

func branchPod(name, uid string, vlan int) *corev1.Pod {
	p := pod(name, uid)
	p.Spec.Containers[0].Resources.Limits = corev1.ResourceList{annotation.Key: resource.MustParse("1")}
	if vlan > 0 {
		p.Annotations = map[string]string{annotation.Key: annotated(vlan)}
	}
	return p
}

func annotated(vlan int) string {
	return fmt.Sprintf(`[{"eniId":"eni-b%d","ifAddress":"06:20:0d:3c:5f:%02x","privateIp":"192.168.47.%d","vlanId":%d,"subnetCidr":"192.168.32.0/19"}]`, vlan, vlan, vlan, vlan)
}

func addRequest(name, uid, sandbox string) *rpc.AddRequest {
	return &rpc.AddRequest{Pod: &rpc.Pod{Namespace: "default", Name: name, Uid: uid}, Attachment: &rpc.Attachment{ContainerId: sandbox, IfName: "eth0", NetworkName: "aws-cni"}}
}

func delRequest(sandbox string) *rpc.DelRequest {
	return &rpc.DelRequest{Pod: &rpc.Pod{Namespace: "default", Name: "x"}, Attachment: &rpc.Attachment{ContainerId: sandbox, IfName: "eth0"}}
}

func add(t *testing.T, s service, r *rpc.AddRequest) (*rpc.AddReply, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return s.Add(ctx, r)
}

func mustAdd(t *testing.T, s service, r *rpc.AddRequest) *rpc.AddReply {
	t.Helper()
	reply, err := add(t, s, r)
	if err != nil {
		t.Fatalf("Add %v: %v", r, err)
	}
	return reply
}

func wantCode(t *testing.T, err error, code codes.Code, says ...string) {
	t.Helper()
	if status.Code(err) != code {
		t.Fatalf("got %v, want code %v", err, code)
	}
	for _, s := range says {
		if !strings.Contains(err.Error(), s) {
			t.Errorf("%q does not name %q", err, s)
		}
	}
}

func (w *world) labelled() bool {
	var n corev1.Node
	if err := w.api.Get(context.Background(), client.ObjectKey{Name: nodeName}, &n); err != nil {
		w.t.Fatal(err)
	}
	return n.Labels["vpc.amazonaws.com/has-trunk-attached"] == "true"
}

func TestP17ConflistAppearsOnceTheFirstAddressCanBeGiven(t *testing.T) {
	w := newWorld(t)
	w.cloud.failed = fmt.Errorf("EC2 is away")
	s, _ := w.start()
	conflist := filepath.Join(w.dir, "10-aws.conflist")
	eventually(t, "the inventory is read", s.a.hasListed)
	eventually(t, "EC2 was tried", func() bool { s.a.mu.Lock(); defer s.a.mu.Unlock(); return s.a.poolErr != nil })
	if _, err := os.Stat(conflist); err == nil || s.a.ready.Load() {
		t.Fatal("the conflist is there and no address is")
	}
	w.cloud.mu.Lock()
	w.cloud.failed = nil
	w.cloud.mu.Unlock()
	eventually(t, "the agent is ready", s.a.ready.Load)
	if _, err := os.Stat(conflist); err != nil {
		t.Fatal(err)
	}
}

func TestNoAddressIsGivenTwiceInABurstAndAcrossKills(t *testing.T) {
	var objects []client.Object
	for i := range 16 {
		objects = append(objects, pod(fmt.Sprintf("p%d", i), fmt.Sprintf("u%d", i)))
	}
	w := newWorld(t, objects...)
	s, kill := w.start()
	got := map[string]string{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			name := fmt.Sprintf("p%d", i)
			r, err := add(t, s, addRequest(name, fmt.Sprintf("u%d", i), "sandbox-"+name))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			addr := r.GetRegular().GetAddress()
			if other, dup := got[addr]; dup {
				t.Errorf("%s was given to %s and %s", addr, other, name)
			}
			got[addr] = name
		})
	}
	wg.Wait()
	kill()
	s, _ = w.start()
	for addr, name := range got {
		r := mustAdd(t, s, addRequest(name, "u"+name[1:], "sandbox-"+name))
		if r.GetRegular().GetAddress() != addr {
			t.Errorf("%s had %s, after the restart %s", name, addr, r.GetRegular().GetAddress())
		}
	}
}

func TestUnknownPodIsRefusedAndOtherUIDToo(t *testing.T) {
	w := newWorld(t, pod("known", "u-new"))
	s, _ := w.start()
	s.a.lookup.Grace = 50 * time.Millisecond
	_, err := add(t, s, addRequest("nobody", "u0", "s1"))
	wantCode(t, err, codes.NotFound, "default/nobody")
	_, err = add(t, s, addRequest("known", "u-old", "s2"))
	wantCode(t, err, codes.NotFound, "u-old", "u-new")
	_, err = add(t, s, &rpc.AddRequest{})
	wantCode(t, err, codes.InvalidArgument)
	if n := len(s.a.store.View().Allocations); n != 0 {
		t.Errorf("%d allocations are left", n)
	}
}

func TestP2BranchPodWithoutTheFeatureIsRefusedNeverWiredAsRegular(t *testing.T) {
	w := newWorld(t, branchPod("green", "u1", 7))
	s, _ := w.start()
	_, err := add(t, s, addRequest("green", "u1", "s1"))
	wantCode(t, err, codes.FailedPrecondition, "default/green", "ENABLE_POD_ENI")

	w = newWorld(t, branchPod("green", "u1", 7))
	w.env["ENABLE_POD_ENI"], w.typ = "true", "t3.medium"
	s, _ = w.start()
	_, err = add(t, s, addRequest("green", "u1", "s1"))
	wantCode(t, err, codes.FailedPrecondition, "t3.medium")
	eventually(t, "the node's event", func() bool { return len(w.events("TrunkUnsupported")) == 1 })
	if n := s.counted("TrunkUnsupported"); n == 0 {
		t.Error("no metric tells of it")
	}
	if w.labelled() || s.a.snapshot().KeepTrunkSlot {
		t.Error("an unsupported type got a label or lost a slot")
	}
}

func (w *world) events(reason string) (out []corev1.Event) {
	var l corev1.EventList
	if err := w.api.List(context.Background(), &l); err != nil {
		w.t.Fatal(err)
	}
	return slices.DeleteFunc(l.Items, func(e corev1.Event) bool { return e.Reason != reason })
}

func TestTrunkIsAskedForAndTheLabelComesWithItsLink(t *testing.T) {
	w := newWorld(t)
	w.env["ENABLE_POD_ENI"] = "true"
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	ctx := context.Background()
	n := &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}, Spec: cninodev1.CNINodeSpec{Features: []cninodev1.Feature{{Name: cninodev1.CustomNetworking, Value: "x"}}}}
	if err := w.api.Create(ctx, n); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the feature, beside the other", func() bool {
		var n cninodev1.CNINode
		_ = w.api.Get(ctx, client.ObjectKey{Name: nodeName}, &n)
		_, ok := n.Has(cninodev1.SecurityGroupsForPods)
		return ok && len(n.Spec.Features) == 2
	})
	if w.labelled() {
		t.Fatal("the label is there and no trunk is")
	}
	w.cloud.attachTrunk()
	eventually(t, "the label", w.labelled)
	if got := w.routing.localAt(); !slices.Equal(got, []int{hostnet.LocalPriorityStrict}) {
		t.Errorf("local rule at %v", got)
	}
}

func TestTheLabelComesBackWhoeverTookIt(t *testing.T) {
	w := newWorld(t, &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	w.env["ENABLE_POD_ENI"] = "true"
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	eventually(t, "the label", w.labelled)
	ctx := context.Background()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	if err := w.api.Patch(ctx, n, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":null}}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the label, once more", w.labelled)
	if err := w.api.Delete(ctx, n); err != nil {
		t.Fatal(err)
	}
	// A kubelet that is restarted registers its node anew.
	if err := w.api.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new Node's label", w.labelled)
	kill()
	w.env["ENABLE_POD_ENI"] = "false"
	s, _ = w.start()
	eventually(t, "no label with the feature off", func() bool { return !w.labelled() })
	n = &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	if err := w.api.Patch(ctx, n, client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":"yes"}}}`))); err != nil {
		t.Fatal(err)
	}
	eventually(t, "somebody's label taken off", func() bool {
		var n corev1.Node
		err := w.api.Get(ctx, client.ObjectKey{Name: nodeName}, &n)
		return err == nil && len(n.Labels) == 0
	})
}

func slot(vlan int, uid, name string, state ledgerv1.SlotState) ledgerv1.Slot {
	return ledgerv1.Slot{VLANID: int32(vlan), State: state, PodUID: types.UID(uid), PodNamespace: "default", PodName: name,
		ENIID: fmt.Sprintf("eni-b%d", vlan), SecurityGroups: []string{"sg-1"}}
}

func (w *world) setLedger(slots ...ledgerv1.Slot) {
	w.t.Helper()
	w.ledgers.Store(true)
	ctx := context.Background()
	var l ledgerv1.BranchLedger
	err := w.api.Get(ctx, client.ObjectKey{Name: instanceID}, &l)
	l.Name, l.Spec = instanceID, ledgerv1.BranchLedgerSpec{InstanceID: instanceID, NodeName: nodeName, Slots: slots}
	if err != nil {
		err = w.api.Create(ctx, &l)
	} else {
		err = w.api.Update(ctx, &l)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) released() (out []string) {
	var l ledgerv1.BranchLedger
	if err := w.api.Get(context.Background(), client.ObjectKey{Name: instanceID}, &l); err != nil {
		w.t.Fatal(err)
	}
	for _, r := range l.Status.Released {
		out = append(out, string(r.PodUID))
	}
	return out
}

func TestP16BranchPodWaitsForItsAssignmentByEvent(t *testing.T) {
	w := newWorld(t, branchPod("green", "u1", 0))
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "someone-else", "red", ledgerv1.Bound))
	s, _ := w.start()
	type answer struct {
		r   *rpc.AddReply
		err error
	}
	done := make(chan answer, 1)
	go func() {
		r, err := add(t, s, addRequest("green", "u1", "s1"))
		done <- answer{r, err}
	}()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	ctx := context.Background()
	if err := w.api.Update(ctx, branchPod("green", "u1", 7)); err != nil {
		t.Fatal(err)
	}
	select {
	case a := <-done:
		t.Fatalf("answered with %v, %v while the ledger has the VLAN for another pod", a.r, a.err)
	case <-time.After(100 * time.Millisecond):
	}
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
	a := <-done
	if a.err != nil {
		t.Fatal(a.err)
	}
	b := a.r.GetBranch()
	if b.GetVlanId() != 7 || b.GetGateway() != "192.168.32.1" || b.GetMac() != "06:20:0d:3c:5f:07" || b.GetTrunkIfindex() == 0 {
		t.Errorf("answered %v", b)
	}
}

func TestABranchPodWaitsForTheHostsRoutingOfStrictMode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, branchPod("green", "u1", 7))
		w.virtual()
		w.env["ENABLE_POD_ENI"] = "true"
		w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
		w.routing.set(errors.New("no buffer space available"))
		s, _ := w.start()
		eventually(t, "the view of the ENIs", func() bool { return len(s.a.inventory.ENIs()) > 0 })
		w.cloud.attachTrunk()
		eventually(t, "the trunk", func() bool { tr, ok := s.a.inventory.Trunk(); return ok && tr.LinkUp })
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.Add(ctx, addRequest("green", "u1", "s1"))
		wantCode(t, err, codes.Unavailable, "default/green", "routing")
		w.routing.set(nil)
		mustAdd(t, s, addRequest("green", "u1", "s1"))
		if got := w.routing.localAt(); !slices.Equal(got, []int{hostnet.LocalPriorityStrict}) {
			t.Errorf("answered with the local rule at %v", got)
		}
	})
}

func TestALedgerThatIsMissingIsWaitedForNotTaken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, branchPod("green", "u1", 7))
		w.virtual()
		w.env["ENABLE_POD_ENI"] = "true"
		w.ledgers.Store(true)
		s, _ := w.start()
		eventually(t, "ready", s.a.ready.Load)
		w.cloud.attachTrunk()
		eventually(t, "the ledgers' list", func() bool { _, err := s.a.opt.Kube.Ledger(); return errors.Is(err, kube.ErrNoLedger) })
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		_, err := s.Add(ctx, addRequest("green", "u1", "s1"))
		wantCode(t, err, codes.Unavailable, "default/green", "controller")
		w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
		mustAdd(t, s, addRequest("green", "u1", "s1"))
	})
}

func TestMalformedAnnotationIsRefusedAtOnceWithPodAndField(t *testing.T) {
	p := branchPod("green", "u1", 0)
	p.Annotations = map[string]string{annotation.Key: `[{"eniId":"eni-1","vlanId":0}]`}
	w := newWorld(t, p)
	w.env["ENABLE_POD_ENI"] = "true"
	s, _ := w.start()
	_, err := add(t, s, addRequest("green", "u1", "s1"))
	wantCode(t, err, codes.FailedPrecondition, "default/green", "vlanId")
}

func TestReleaseIsConfirmedOnlyWhenNothingOfThePodIsLeft(t *testing.T) {
	p := branchPod("green", "u1", 7)
	w := newWorld(t, p)
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	mustAdd(t, s, addRequest("green", "u1", "s1"))
	w.cloud.setVLAN(7, true)
	if err := w.api.Delete(context.Background(), p); err != nil {
		t.Fatal(err)
	}
	w.setLedger(slot(7, "u1", "green", ledgerv1.Releasing))
	if _, err := s.Del(context.Background(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	if got := w.released(); len(got) > 0 {
		t.Fatalf("confirmed %v while the VLAN link is there", got)
	}
	kill() // the confirmation is owed by the next run
	w.cloud.mu.Lock()
	delete(w.cloud.vlans, 7)
	w.cloud.mu.Unlock()
	s, _ = w.start()
	eventually(t, "the confirmation", func() bool { return slices.Equal(w.released(), []string{"u1"}) })
	w.setLedger(slot(7, "", "", ledgerv1.Free))
	eventually(t, "the entry is dropped", func() bool { return len(w.released()) == 0 })
	eventually(t, "and forgotten", func() bool { return len(s.a.store.View().Released) == 0 })
}

func TestARunningPodIsNeverConfirmedAsReleased(t *testing.T) {
	// Bound in the ledger, alive in the API server, not yet wired: sandbox changes must not give its slot away.
	w := newWorld(t, branchPod("green", "u1", 7))
	w.env["ENABLE_POD_ENI"] = "true"
	w.setLedger(slot(7, "u1", "green", ledgerv1.Bound))
	s, _ := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	for i := range 3 {
		mustAdd(t, s, addRequest("green", "u1", fmt.Sprint("s", i)))
		if _, err := s.Del(context.Background(), delRequest(fmt.Sprint("s", i))); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.a.releaser.Reconcile(context.Background()); err != nil {
		t.Fatal(err)
	}
	if got := w.released(); len(got) > 0 {
		t.Fatalf("confirmed %v", got)
	}
}

func TestTurningTheFeatureOffKeepsRunningBranchPodsThenCleansUp(t *testing.T) {
	w := newWorld(t, branchPod("green", "u1", 7), &cninodev1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: nodeName}})
	w.env["ENABLE_POD_ENI"] = "true"
	s, kill := w.start()
	eventually(t, "ready", s.a.ready.Load)
	w.cloud.attachTrunk()
	mustAdd(t, s, addRequest("green", "u1", "s1"))
	w.cloud.setVLAN(7, true)
	eventually(t, "the label", w.labelled)
	kill()
	w.env["ENABLE_POD_ENI"] = "false"
	s, _ = w.start()
	eventually(t, "ready", s.a.ready.Load)
	mustAdd(t, s, addRequest("green", "u1", "s1")) // the running one is answered as before
	if !w.labelled() || !slices.Equal(w.routing.localAt(), []int{hostnet.LocalPriorityStrict}) {
		t.Fatal("taken away under a running branch pod")
	}
	if err := w.api.Create(context.Background(), branchPod("blue", "u2", 8)); err != nil {
		t.Fatal(err)
	}
	_, err := add(t, s, addRequest("blue", "u2", "s2"))
	wantCode(t, err, codes.FailedPrecondition, "default/blue", "ENABLE_POD_ENI")
	w.cloud.setVLAN(7, false)
	if _, err := s.Del(context.Background(), delRequest("s1")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the label goes", func() bool { return !w.labelled() })
	eventually(t, "the local rule is back", func() bool { return slices.Equal(w.routing.localAt(), []int{hostnet.LocalPriority}) })
	var n cninodev1.CNINode
	if err := w.api.Get(context.Background(), client.ObjectKey{Name: nodeName}, &n); err != nil {
		t.Fatal(err)
	}
	if _, ok := n.Has(cninodev1.SecurityGroupsForPods); !ok {
		t.Error("the feature was withdrawn, too: the controller would give the node up")
	}
}

func TestLostStoreGivesNoWiredAddressAway(t *testing.T) {
	w := newWorld(t, pod("a", "u1"), pod("b", "u2"))
	s, kill := w.start()
	first := mustAdd(t, s, addRequest("a", "u1", "s1")).GetRegular().GetAddress()
	kill()
	if err := os.WriteFile(filepath.Join(w.dir, "state.json"), []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	w.routing.pods = append(w.routing.pods, s.a.inventory.ENIs()[0].Addresses[1])
	s, _ = w.start()
	if got := mustAdd(t, s, addRequest("b", "u2", "s2")).GetRegular().GetAddress(); got == first {
		t.Fatalf("%s is wired for another pod", got)
	}
	eventually(t, "the node says so", func() bool { return len(w.events("PodsOfAnotherAgent")) == 1 })
	kept, _ := filepath.Glob(filepath.Join(w.dir, "state.json.corrupt-*"))
	if len(kept) != 1 {
		t.Error("the damaged file was not kept")
	}
}
