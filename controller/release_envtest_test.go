//go:build envtest

package controller_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/ec2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/controller/cloud"
)

// long is when a release without confirmation would have happened, if it were to happen.
const long = 5 * coolDown

// state waits for the state of the first slot.
func state(t *testing.T, id string, want ledgerv1.SlotState) *ledgerv1.Slot {
	t.Helper()
	var s ledgerv1.Slot
	eventually(t, "slot of "+id, func() error {
		l := ledgerOf(t, id)
		if l == nil || len(l.Spec.Slots) == 0 {
			return fmt.Errorf("ledger %v", l)
		}
		if s = l.Spec.Slots[0]; s.State != want {
			return fmt.Errorf("is %s, want %s", s.State, want)
		}
		return nil
	})
	return &s
}

// stays watches that slot and branch ENIs don't change.
func stays(t *testing.T, what, id string, want ledgerv1.SlotState, enis int) {
	t.Helper()
	for end := time.Now().Add(long); time.Now().Before(end); time.Sleep(coolDown / 6) {
		l := ledgerOf(t, id)
		if _, b := inEC2(t, id); l == nil || l.Spec.Slots[0].State != want || len(b) != enis {
			t.Fatalf("%s: ledger %+v, %d branch ENIs", what, l, len(b))
		}
	}
}

func terminate(t *testing.T, id string) {
	t.Helper()
	_, err := w.ec2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	must(t, err)
}

func cleared(t *testing.T, id string) {
	t.Helper()
	eventually(t, "nothing of "+id+" is left", func() error {
		trunks, b := inEC2(t, id)
		if l := ledgerOf(t, id); l != nil || trunks+len(b) > 0 {
			return fmt.Errorf("ledger %v, %d trunks, %d branches", l, trunks, len(b))
		}
		return nil
	})
}

func withdraw(t *testing.T, node string) {
	t.Helper()
	must(t, w.admin.Patch(t.Context(), &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: node}},
		client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"features":[]}}`))))
	label(t, node, false)
}

// A VLAN id is never given back because somebody is silent: the agent may be away, with the pod's links still there.
func TestASilentAgentsSlotIsReleasedOnlyWhenEverythingElseAgrees(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "silent")
	id := launch(t, "silent", "m5.large", w.subnet)
	ready(t, "silent", id, 9)
	p := pod(t, "silent", "p", "silent")
	annotated(t, p)
	remove(t, p)
	s := state(t, id, ledgerv1.Releasing)
	stays(t, "the agent is silent", id, ledgerv1.Releasing, 1)
	withdraw(t, "silent")
	stays(t, "the feature is gone, EC2 still shows the association", id, ledgerv1.Releasing, 1)
	_, err := w.ec2.DisassociateTrunkInterface(t.Context(), &ec2.DisassociateTrunkInterfaceInput{AssociationId: &s.AssociationID})
	must(t, err)
	state(t, id, ledgerv1.Free)
	branches(t, id, 0)
}

func TestFeatureOnAndNoAssociationIsNotEnough(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "half")
	id := launch(t, "half", "m5.large", w.subnet)
	ready(t, "half", id, 9)
	p := pod(t, "half", "p", "half")
	annotated(t, p)
	remove(t, p)
	s := state(t, id, ledgerv1.Releasing)
	_, err := w.ec2.DisassociateTrunkInterface(t.Context(), &ec2.DisassociateTrunkInterfaceInput{AssociationId: &s.AssociationID})
	must(t, err)
	stays(t, "the agent is on and silent", id, ledgerv1.Releasing, 1)
	confirm(t, id, p) // it was only slow
	state(t, id, ledgerv1.Free)
	branches(t, id, 0)
}

func TestTheInstanceIsGoneAndItsNodeStays(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "stale")
	id := launch(t, "stale", "m5.large", w.subnet)
	ready(t, "stale", id, 9)
	ends, lives := pod(t, "stale", "ends", "stale"), pod(t, "stale", "lives", "stale")
	annotated(t, ends)
	annotated(t, lives)
	remove(t, ends)
	terminate(t, id)
	// While the Node claims to be well, only what had ended goes; EC2 was asked because of that.
	branches(t, id, 1)
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "stale"), &n))
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	must(t, w.admin.Status().Update(t.Context(), &n))
	cleared(t, id)
	told(t, &n, "InstanceGone", id)
	time.Sleep(long)
	if l := ledgerOf(t, id); l != nil {
		t.Errorf("a ledger was made again: %+v", l.Spec)
	}
}

func TestTheNodeIsDeletedWhileItsInstanceLives(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "back")
	id := launch(t, "back", "m5.large", w.subnet)
	ready(t, "back", id, 9)
	p := pod(t, "back", "p", "back")
	value := annotated(t, p)
	must(t, w.admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "back"}}))
	stays(t, "the node is gone, its instance is not", id, ledgerv1.Bound, 1)
	remove(t, p)
	state(t, id, ledgerv1.Releasing)
	stays(t, "nor is its pod's wiring, as far as anybody knows", id, ledgerv1.Releasing, 1)
	register(t, "back", "m5.large", id)
	ready(t, "back", id, 9)
	q := pod(t, "back", "p", "back") // a StatefulSet's successor
	if again := annotated(t, q); again == value {
		t.Errorf("the successor got its predecessor's annotation %s", again)
	}
	if trunks, b := inEC2(t, id); trunks != 1 || len(b) != 2 {
		t.Errorf("%d trunks, %d branches", trunks, len(b))
	}
	confirm(t, id, p)
	branches(t, id, 1)
}

func TestTheNodeIsReplacedUnderItsNameWithPodsOnBoth(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "twice")
	old := launch(t, "twice", "m5.large", w.subnet)
	ready(t, "twice", old, 9)
	p := pod(t, "twice", "p", "twice")
	annotated(t, p)
	must(t, w.admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "twice"}}))
	remove(t, p)
	fresh := launch(t, "twice", "m5.large", w.subnet)
	ready(t, "twice", fresh, 9)
	q := pod(t, "twice", "p", "twice")
	annotated(t, q)
	branches(t, fresh, 1)
	stays(t, "the old instance lives", old, ledgerv1.Releasing, 1)
	terminate(t, old)
	cleared(t, old)
	branches(t, fresh, 1)
	if trunks, _ := inEC2(t, fresh); trunks != 1 {
		t.Errorf("%d trunks", trunks)
	}
}

// A node sets its provider id itself.
func TestANodeThatNamesAnothersInstanceGetsNothing(t *testing.T) {
	start(t, 0, nil)
	id := launch(t, "honest", "m5.large", w.subnet)
	ready(t, "honest", id, 9)
	register(t, "thief", "m5.large", id)
	t.Cleanup(func() {
		w.admin.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "thief"}})
	})
	ask(t, "thief")
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "thief"), &n))
	label(t, "thief", true)
	told(t, &n, "InstanceOfAnotherNode", id, "honest")
	must(t, w.admin.Get(t.Context(), keyOf("", "thief"), &n))
	if q := n.Status.Capacity["vpc.amazonaws.com/pod-eni"]; q.Value() != 0 {
		t.Errorf("capacity %v", q)
	}
}

// A node that is cut off still serves its pods, and EC2 may not know an instance for a moment.
func TestASilentNodesInstanceThatEC2DoesNotKnowKeepsWhatItHas(t *testing.T) {
	start(t, 0, func(o *controller.Options) { o.EC2 = &forgetful{EC2: o.EC2} })
	namespace(t, "cutoff")
	id := launch(t, "cutoff", "m5.large", w.subnet)
	ready(t, "cutoff", id, 9)
	annotated(t, pod(t, "cutoff", "p", "cutoff"))
	n := node(t, "cutoff")
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown, Reason: "NodeStatusUnknown"}}
	must(t, w.admin.Status().Update(t.Context(), n))
	told(t, n, "InstanceUnknown", id)
	stays(t, "EC2 does not know the instance", id, ledgerv1.Bound, 1)
	must(t, w.admin.Delete(t.Context(), n))
	stays(t, "the trunk is attached to it", id, ledgerv1.Bound, 1)
	terminate(t, id) // to be forgotten, with the Node's absence, is enough then
	cleared(t, id)
}

// forgetful is an EC2 that knows no instance when it is asked for several by a filter.
type forgetful struct{ cloud.EC2 }

func (f *forgetful) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	if len(in.Filters) > 0 {
		return &ec2.DescribeInstancesOutput{}, nil
	}
	return f.EC2.DescribeInstances(ctx, in, o...)
}
