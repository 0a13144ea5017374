package trunk

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/controller/cloud"
	"github.com/branchline-cni/branchline/controller/events"
	"github.com/branchline-cni/branchline/controller/ledger"
)

// fullInstance is an EC2 with one instance of a type, all of whose device indexes are taken.
type fullInstance struct {
	oneInstance
	typ   string
	asked int
}

func (e *fullInstance) DescribeInstances(ctx context.Context, in *ec2.DescribeInstancesInput, o ...func(*ec2.Options)) (*ec2.DescribeInstancesOutput, error) {
	e.asked++
	out, err := e.oneInstance.DescribeInstances(ctx, in, o...)
	i := &out.Reservations[0].Instances[0]
	i.InstanceType = types.InstanceType(e.typ)
	for device := range int32(2) {
		i.NetworkInterfaces = append(i.NetworkInterfaces, types.InstanceNetworkInterface{Attachment: &types.InstanceNetworkInterfaceAttachment{DeviceIndex: awssdk.Int32(device + 1)}})
	}
	return out, err
}

// nodeWorld is one node whose agent asks for a trunk.
type nodeWorld struct {
	api     client.Client
	ec2     *fullInstance
	r       *Nodes
	now     time.Time
	said    *record.FakeRecorder
	cninode *v1alpha1.CNINode
}

func newNodeWorld(t *testing.T, label, real string) *nodeWorld {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1alpha1.AddToScheme, ledgerv1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "node-uid"}, Spec: corev1.NodeSpec{ProviderID: "aws:///us-west-2a/i-01"}}
	if label != "" {
		node.Labels = map[string]string{corev1.LabelInstanceTypeStable: label}
	}
	cninode := &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: "n", UID: "cninode-uid", Generation: 1, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: "n", UID: node.UID}}}}
	cninode.Spec.Features = []v1alpha1.Feature{{Name: v1alpha1.SecurityGroupsForPods}}
	l := &ledgerv1.BranchLedger{ObjectMeta: metav1.ObjectMeta{Name: "i-01", UID: "ledger-uid"}, Spec: ledgerv1.BranchLedgerSpec{NodeName: "n", InstanceID: "i-01"}}
	w := &nodeWorld{ec2: &fullInstance{typ: real}, now: time.Unix(1_000_000, 0), said: record.NewFakeRecorder(1000), cninode: cninode}
	w.api = fake.NewClientBuilder().WithScheme(s).WithObjects(node, cninode, l).Build()
	clock := func() time.Time { return w.now }
	w.r = &Nodes{
		Client: w.api, Cloud: &cloud.Client{EC2: w.ec2, ClusterName: "demo"}, Ledgers: &ledger.Store{Reader: w.api, Writer: w.api},
		Events: &events.Recorder{Recorder: w.said, Now: clock}, Log: slog.New(slog.DiscardHandler), Now: clock,
		Pods: func(context.Context, string) ([]corev1.Pod, error) { return nil, nil },
	}
	return w
}

// beats reconciles the node at each of its heartbeats, every half a minute, and says how often EC2 was asked meanwhile.
func (w *nodeWorld) beats(t *testing.T, d time.Duration) (asked int) {
	t.Helper()
	before := w.ec2.asked
	for end := w.now.Add(d); w.now.Before(end); w.now = w.now.Add(30 * time.Second) {
		result, err := w.r.Reconcile(t.Context(), ctrl.Request{NamespacedName: client.ObjectKey{Name: "n"}})
		if err != nil || result.RequeueAfter == 0 {
			t.Fatalf("%+v, %v: want to be called again, at leisure", result, err)
		}
	}
	return w.ec2.asked - before
}

func TestANodeWithoutAFreeIndexAsksEC2InMinutesThatGrow(t *testing.T) {
	w := newNodeWorld(t, "m5.large", "m5.large")
	if n := w.beats(t, 40*time.Second); n != 1 {
		t.Errorf("asked %d times at first", n)
	}
	if n := w.beats(t, time.Hour); n < 4 || n > 8 {
		t.Errorf("asked %d times in the first hour", n)
	}
	if n := w.beats(t, 6*time.Hour); n < 9 || n > 18 {
		t.Errorf("asked %d times in six more hours", n)
	}
	if told := <-w.said.Events; !strings.Contains(told, "NoInterfaceLeft") {
		t.Errorf("said %q", told)
	}
	// The agent asks anew, as it does once it has made room.
	w.cninode.ResourceVersion = ""
	if err := w.api.Get(t.Context(), client.ObjectKey{Name: "n"}, w.cninode); err != nil {
		t.Fatal(err)
	}
	w.cninode.Generation++
	if err := w.api.Update(t.Context(), w.cninode); err != nil {
		t.Fatal(err)
	}
	if n := w.beats(t, 10*time.Second); n != 1 {
		t.Errorf("asked %d times after the CNINode changed", n)
	}
}

// TestP23AnUnknownInstanceTypeIsSaidWithItsRemedy: new types appear each month.
func TestP23AnUnknownInstanceTypeIsSaidWithItsRemedy(t *testing.T) {
	for name, tt := range map[string]struct {
		label, real string
		most        int
		says        []string
	}{
		"the label says so":         {label: "x9.huge", real: "x9.huge", most: 0, says: []string{"x9.huge", "not known to this version"}},
		"only EC2 says so":          {real: "x9.huge", most: 8, says: []string{"x9.huge", "not known to this version"}},
		"known, and can't":          {label: "t3.medium", real: "t3.medium", most: 0, says: []string{"t3.medium", "m5.large"}},
		"a label that says more":    {label: "m5.large", real: "t3.medium", most: 8, says: []string{"t3.medium", "m5.large"}},
		"a label that is not known": {label: "m5.large", real: "x9.huge", most: 8, says: []string{"x9.huge", "not known"}},
	} {
		w := newNodeWorld(t, tt.label, tt.real)
		if n := w.beats(t, time.Hour); n > tt.most {
			t.Errorf("%s: EC2 was asked %d times in an hour of heartbeats", name, n)
		}
		told := <-w.said.Events
		for _, word := range append(tt.says, "UnsupportedInstanceType") {
			if !strings.Contains(told, word) {
				t.Errorf("%s: %q lacks %q", name, told, word)
			}
		}
	}
}
