//go:build envtest

package controller_test

// What the others do around the controller: the operator, the node and its agent, users.

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/controller/trunk"
	"github.com/branchline-cni/branchline/policy"
)

// eventually waits until the check finds nothing wrong.
func eventually(t *testing.T, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: %v", what, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// launch starts an instance and registers it as a node, as the agent leaves it: feature asked for, label set.
func launch(t *testing.T, name, instanceType, subnetID string) (instanceID string) {
	t.Helper()
	out, err := w.ec2.RunInstances(t.Context(), &ec2.RunInstancesInput{
		InstanceType: ec2types.InstanceType(instanceType), SubnetId: &subnetID, SecurityGroupIds: []string{w.group},
		MinCount: awssdk.Int32(1), MaxCount: awssdk.Int32(1), ImageId: awssdk.String("ami-1"),
	})
	must(t, err)
	id := *out.Instances[0].InstanceId
	register(t, name, instanceType, id)
	t.Cleanup(func() {
		ctx := context.Background()
		w.admin.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}})
		w.ec2.TerminateInstances(ctx, &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	})
	return id
}

func register(t *testing.T, name, instanceType, id string) {
	t.Helper()
	must(t, w.admin.Create(t.Context(), &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelOSStable: "linux", corev1.LabelInstanceTypeStable: instanceType}},
		Spec:       corev1.NodeSpec{ProviderID: "aws:///us-west-2a/" + id},
	}))
}

// ask is what the agent does first.
func ask(t *testing.T, node string) {
	t.Helper()
	eventually(t, "CNINode of "+node, func() error {
		return w.admin.Patch(t.Context(), &v1alpha1.CNINode{ObjectMeta: metav1.ObjectMeta{Name: node}},
			client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"features":[{"name":"SecurityGroupsForPods"}]}}`)))
	})
}

func label(t *testing.T, node string, on bool) {
	t.Helper()
	value := "null"
	if on {
		value = `"true"`
	}
	must(t, w.admin.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}},
		client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"`+trunk.Label+`":`+value+`}}}`))))
}

func ledgerOf(t *testing.T, id string) *ledgerv1.BranchLedger {
	t.Helper()
	var l ledgerv1.BranchLedger
	if err := w.admin.Get(t.Context(), client.ObjectKey{Name: id}, &l); err != nil {
		return nil
	}
	return &l
}

// ready waits for the trunk, then labels the node as the agent does, and waits for the capacity.
func ready(t *testing.T, node, id string, want int64) {
	t.Helper()
	eventually(t, "trunk of "+node, func() error {
		ask(t, node) // again where the CNINode was one of an earlier node of this name
		if l := ledgerOf(t, id); l == nil || l.Spec.TrunkENIID == "" {
			return fmt.Errorf("ledger %+v", l)
		}
		return nil
	})
	label(t, node, true)
	capacity(t, node, want)
}

func capacity(t *testing.T, node string, want int64) {
	t.Helper()
	eventually(t, "capacity of "+node, func() error {
		var n corev1.Node
		if err := w.admin.Get(t.Context(), client.ObjectKey{Name: node}, &n); err != nil {
			return err
		}
		c, a := n.Status.Capacity[policy.Resource], n.Status.Allocatable[policy.Resource]
		if c.Value() != want || a.Value() != want {
			return fmt.Errorf("capacity %v, allocatable %v, want %d", c.Value(), a.Value(), want)
		}
		return nil
	})
}

func namespace(t *testing.T, name string) {
	t.Helper()
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	must(t, w.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: name, Name: "allow-rds-access"},
		Spec: v1beta1.SecurityGroupPolicySpec{
			PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "green-pod"}}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{w.group}},
		},
	}))
}

// pod creates a pod that asks for a branch ENI, bound to the node unless that is empty.
func pod(t *testing.T, namespace, name, node string) *corev1.Pod {
	t.Helper()
	one := corev1.ResourceList{policy.Resource: resource.MustParse("1")}
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: map[string]string{"app": "green-pod"}},
		Spec:       corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{Limits: one, Requests: one}}}},
	}
	must(t, w.admin.Create(t.Context(), p))
	t.Cleanup(func() { w.admin.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	return p
}

func remove(t *testing.T, p *corev1.Pod) {
	t.Helper()
	must(t, client.IgnoreNotFound(w.admin.Delete(t.Context(), p, client.GracePeriodSeconds(0))))
}

func annotated(t *testing.T, p *corev1.Pod) string {
	t.Helper()
	var got corev1.Pod
	eventually(t, "annotation of "+p.Name, func() error {
		if err := w.admin.Get(t.Context(), client.ObjectKeyFromObject(p), &got); err != nil {
			return err
		}
		if got.Annotations[policy.Resource] == "" {
			return fmt.Errorf("none; events: %v", events(t, p))
		}
		return nil
	})
	return got.Annotations[policy.Resource]
}

func events(t *testing.T, o client.Object) []string {
	t.Helper()
	var l corev1.EventList
	must(t, w.admin.List(t.Context(), &l))
	var r []string
	for _, e := range l.Items {
		if e.InvolvedObject.UID == o.GetUID() {
			r = append(r, e.Reason+": "+e.Message)
		}
	}
	return r
}

// told waits for an event with the reason that holds all the words.
func told(t *testing.T, o client.Object, reason string, words ...string) {
	t.Helper()
	eventually(t, "event "+reason, func() error {
		all := events(t, o)
	next:
		for _, e := range all {
			if !strings.HasPrefix(e, reason+": ") {
				continue
			}
			for _, word := range words {
				if !strings.Contains(e, word) {
					continue next
				}
			}
			return nil
		}
		return fmt.Errorf("want %q in %q", words, all)
	})
}

// confirm does the node agent's part for one pod.
func confirm(t *testing.T, id string, p *corev1.Pod) {
	t.Helper()
	eventually(t, "confirm "+p.Name, func() error {
		l := ledgerOf(t, id)
		if l == nil {
			return errors.New("no ledger")
		}
		l.Status.Released = append(l.Status.Released, ledgerv1.Released{PodUID: p.UID, ReleasedAt: metav1.NowMicro()})
		return w.admin.Status().Update(t.Context(), l)
	})
}

// inEC2 lists the controller's ENIs of an instance: how many trunks, and the branches.
func inEC2(t *testing.T, id string) (trunks int, branches []ec2types.NetworkInterface) {
	t.Helper()
	out, err := w.ec2.DescribeNetworkInterfaces(t.Context(), &ec2.DescribeNetworkInterfacesInput{Filters: []ec2types.Filter{
		{Name: awssdk.String("tag:branchline.dev/instance-id"), Values: []string{id}}}})
	must(t, err)
	for _, e := range out.NetworkInterfaces {
		if *e.Description == "aws-k8s-trunk-eni" {
			trunks++
		} else {
			branches = append(branches, e)
		}
	}
	return trunks, branches
}
