//go:build envtest

package controller_test

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/controller"
)

// foreign makes an ENI that looks like one of a controller of that cluster.
func foreign(t *testing.T, description, cluster string, at time.Time) string {
	t.Helper()
	tag := func(k, v string) ec2types.Tag { return ec2types.Tag{Key: &k, Value: &v} }
	out, err := w.ec2.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{
		SubnetId: &w.subnet, Description: &description, Groups: []string{w.group},
		TagSpecifications: []ec2types.TagSpecification{{ResourceType: ec2types.ResourceTypeNetworkInterface, Tags: []ec2types.Tag{
			tag("eks:eni:owner", "eks-vpc-resource-controller"), tag("kubernetes.io/cluster/"+cluster, "owned"),
			tag("node.k8s.amazonaws.com/createdAt", at.UTC().Format(time.RFC3339)), tag("branchline.dev/claim", "nobody's"),
		}}},
	})
	must(t, err)
	id := *out.NetworkInterface.NetworkInterfaceId
	t.Cleanup(func() {
		w.ec2.DeleteNetworkInterface(context.Background(), &ec2.DeleteNetworkInterfaceInput{NetworkInterfaceId: &id})
	})
	return id
}

func exists(t *testing.T, eni string) bool {
	t.Helper()
	out, err := w.ec2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{Filters: []ec2types.Filter{{Name: awssdk.String("network-interface-id"), Values: []string{eni}}}})
	must(t, err)
	return len(out.NetworkInterfaces) > 0
}

func TestP28TheSweepTakesOnlyWhatIsOursOldAndForgotten(t *testing.T) {
	start(t, 0, func(o *controller.Options) { o.SweepEvery = 100 * time.Millisecond })
	namespace(t, "sweep")
	id := launch(t, "sweep", "m5.large", w.subnet)
	ready(t, "sweep", id, 9)
	annotated(t, pod(t, "sweep", "p", "sweep"))
	trunk := ledgerOf(t, id).Spec.TrunkENIID
	old, young := time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	leaked := foreign(t, "aws-k8s-branch-eni", "demo", old)
	associated := foreign(t, "aws-k8s-branch-eni", "demo", old)
	_, err := w.ec2.CreateTags(t.Context(), tagged(associated, "vpcresources.k8s.aws/trunk-eni-id", trunk))
	must(t, err)
	_, err = w.ec2.AssociateTrunkInterface(t.Context(), &ec2.AssociateTrunkInterfaceInput{BranchInterfaceId: &associated, TrunkInterfaceId: &trunk, VlanId: awssdk.Int32(77)})
	must(t, err)
	unattached := foreign(t, "aws-k8s-trunk-eni", "demo", old)
	kept := []string{
		foreign(t, "aws-k8s-branch-eni", "demo", young), foreign(t, "aws-k8s-branch-eni", "other", old), foreign(t, "somebody's", "demo", old), trunk, ledgerOf(t, id).Spec.Slots[0].ENIID,
	}
	for _, e := range []string{leaked, associated, unattached} {
		eventually(t, "the sweep of "+e, func() error {
			if exists(t, e) {
				return fmt.Errorf("%s is still there", e)
			}
			return nil
		})
	}
	time.Sleep(coolDown)
	for _, e := range kept {
		if !exists(t, e) {
			t.Errorf("%s was swept", e)
		}
	}
}

func setCoolDown(t *testing.T, value string) *corev1.ConfigMap {
	t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "amazon-vpc-cni"}}
	must(t, client.IgnoreAlreadyExists(w.admin.Create(t.Context(), cm.DeepCopy())))
	must(t, w.admin.Patch(t.Context(), cm, client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"data":{"branch-eni-cooldown":%q}}`, value))))
	return cm
}

// The clock is moved, not waited for: what happens next is because the ConfigMap has changed.
func TestAChangedCoolDownHoldsForWhatCoolsAlready(t *testing.T) {
	var ahead atomic.Int64
	t.Cleanup(func() {
		w.admin.Delete(context.Background(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "kube-system", Name: "amazon-vpc-cni"}})
	})
	setCoolDown(t, "300")
	start(t, 0, func(o *controller.Options) {
		o.CoolDown, o.Now = nil, func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	namespace(t, "cool")
	id := launch(t, "cool", "m5.large", w.subnet)
	ready(t, "cool", id, 9)
	for n, tt := range []struct{ value, reason, word string }{{"60", "", ""}, {"soon", "InvalidCoolDown", `"soon"`}, {"5", "InvalidCoolDown", "at least 30"}} {
		setCoolDown(t, "300")
		p := pod(t, "cool", fmt.Sprint("p", n), "cool")
		annotated(t, p)
		remove(t, p)
		confirm(t, id, p)
		slot := func() (s ledgerv1.Slot) {
			for _, s = range ledgerOf(t, id).Spec.Slots {
				if s.State != ledgerv1.Free {
					return s
				}
			}
			return ledgerv1.Slot{}
		}
		eventually(t, "cooling", func() error {
			if s := slot(); s.State != ledgerv1.Cooling {
				return fmt.Errorf("%+v", s)
			}
			return nil
		})
		ahead.Add(int64(100 * time.Second))
		time.Sleep(coolDown)
		if s := slot(); s.State != ledgerv1.Cooling {
			t.Fatalf("%s: after 100 of 300 s: %+v", tt.value, s)
		}
		cm := setCoolDown(t, tt.value)
		branches(t, id, 0)
		if tt.reason != "" {
			told(t, cm, tt.reason, tt.word)
		}
	}
}
