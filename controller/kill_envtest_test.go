//go:build envtest

package controller_test

import (
	"fmt"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/aws/aws-sdk-go-v2/service/ec2"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
)

func keyOf(namespace, name string) types.NamespacedName {
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// Each call of the controller that has an effect is a kill point: the call takes effect, its answer and the controller
// are lost, a new controller takes over. The end is always the same: one branch ENI per live pod, none for the ended
// one, one trunk, and nothing once the instance is gone. Events and leader election's lease are no kill points: nothing is read
// from them. The webhooks' Secret and configurations have TestWebhookCertificatesOutliveTheControllerAndTheConfigurationsAreRestored.
func TestKilledAtEveryCallItConverges(t *testing.T) {
	for n := 1; ; n++ {
		calls, killed := killedAt(t, n)
		if t.Failed() {
			t.Fatalf("killed after call %d of %v", n, calls)
		}
		if !killed {
			if n < 25 {
				t.Fatalf("only %d calls were made: %v", n-1, calls)
			}
			t.Logf("%d kill points: %v", n-1, calls)
			return
		}
		if os.Getenv("VERBOSE") != "" {
			t.Logf("kill point %d: %s", n, calls[len(calls)-1])
		}
	}
}

func killedAt(t *testing.T, n int) (calls []string, killed bool) {
	t.Helper()
	name := fmt.Sprintf("kill%d", n)
	first, stopFirst := start(t, n, nil)
	over := make(chan struct{})
	successor := make(chan func() error, 1)
	go func() { // whoever watches over the controller's process
		select {
		case <-first.dead:
			stopFirst()
			_, stop := start(t, 0, nil)
			successor <- stop
		case <-over:
			successor <- stopFirst
		}
	}()
	namespace(t, name)
	id := launch(t, name, "m5.large", w.subnet)
	ready(t, name, id, 9)
	ends, stays := pod(t, name, "ends", name), pod(t, name, "stays", name)
	annotated(t, ends)
	value := annotated(t, stays)
	invariants(t, id)
	remove(t, ends)
	confirm(t, id, ends)
	eventually(t, "the ended pod's slot is free", func() error {
		l := ledgerOf(t, id)
		for _, s := range l.Spec.Slots {
			if s.PodName != "stays" && s.State != ledgerv1.Free {
				return fmt.Errorf("%+v", s)
			}
		}
		if trunks, b := inEC2(t, id); trunks != 1 || len(b) != 1 {
			return fmt.Errorf("%d trunks, %d branches", trunks, len(b))
		}
		return nil
	})
	invariants(t, id)
	if again := annotated(t, stays); again != value {
		t.Errorf("annotation changed from %s to %s", value, again)
	}
	remove(t, stays)
	confirm(t, id, stays)
	label(t, name, false) // ENABLE_POD_ENI is off again
	capacity(t, name, 0)
	must(t, w.admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	_, err := w.ec2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	must(t, err)
	eventually(t, "nothing is left", func() error {
		trunks, b := inEC2(t, id)
		if l := ledgerOf(t, id); l != nil || trunks+len(b) > 0 {
			return fmt.Errorf("ledger %v, %d trunks, %d branches", l, trunks, len(b))
		}
		err := w.admin.Get(t.Context(), client.ObjectKey{Name: name}, &v1alpha1.CNINode{})
		if client.IgnoreNotFound(err) != nil || err == nil {
			return fmt.Errorf("CNINode: %v", err)
		}
		return nil
	})
	close(over)
	calls = first.effects()
	select {
	case <-first.dead:
		killed = true
	default:
	}
	must(t, (<-successor)())
	return calls, killed
}

// invariants: every bound slot has an ENI of its own, and EC2 has each on its VLAN id of this trunk, and no other there.
func invariants(t *testing.T, id string) {
	t.Helper()
	l := ledgerOf(t, id)
	out, err := w.ec2.DescribeTrunkInterfaceAssociations(t.Context(), &ec2.DescribeTrunkInterfaceAssociationsInput{})
	must(t, err)
	on := map[string]int32{}
	for _, a := range out.InterfaceAssociations {
		if *a.TrunkInterfaceId == l.Spec.TrunkENIID {
			on[*a.BranchInterfaceId] = *a.VlanId
		}
	}
	enis, pods := map[string]bool{}, map[types.UID]bool{}
	for _, s := range l.Spec.Slots {
		if s.State != ledgerv1.Bound {
			continue
		}
		if s.ENIID == "" || s.AssociationID == "" || enis[s.ENIID] || pods[s.PodUID] {
			t.Errorf("slot %+v", s)
		}
		if vlan, ok := on[s.ENIID]; !ok || vlan != s.VLANID {
			t.Errorf("EC2 has %s on VLAN id %d (%v), slot %+v", s.ENIID, vlan, ok, s)
		}
		enis[s.ENIID], pods[s.PodUID] = true, true
	}
	if len(on) != len(enis) {
		t.Errorf("EC2 has %v on the trunk, the ledger has %v", on, enis)
	}
}
