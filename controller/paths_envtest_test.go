//go:build envtest

package controller_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	awssdk "github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

func branches(t *testing.T, id string, want int) {
	t.Helper()
	eventually(t, "branch ENIs of "+id, func() error {
		if _, b := inEC2(t, id); len(b) != want {
			return fmt.Errorf("%d, want %d", len(b), want)
		}
		return nil
	})
}

func TestP16APodBoundBeforeItsNodeIsManagedGetsItsBranchENI(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "whole")
	p := pod(t, "whole", "green", "whole") // before its node is there, let alone managed
	id := launch(t, "whole", "m5.large", w.subnet)
	ready(t, "whole", id, 9)
	value := annotated(t, p)
	var a []map[string]any
	must(t, json.Unmarshal([]byte(value), &a))
	_, b := inEC2(t, id)
	if len(a) != 1 || len(b) != 1 || a[0]["eniId"] != *b[0].NetworkInterfaceId || a[0]["ifAddress"] != *b[0].MacAddress || a[0]["privateIp"] != *b[0].PrivateIpAddress ||
		a[0]["vlanId"] != 1.0 || a[0]["subnetCidr"] != "192.168.0.0/19" || a[0]["associationID"] == "" || a[0]["ipv6Addr"] != "" || a[0]["subnetV6Cidr"] != "" {
		t.Fatalf("annotation %s for %+v", value, b)
	}
	if *b[0].Groups[0].GroupId != w.group || *b[0].Description != "aws-k8s-branch-eni" {
		t.Fatalf("branch ENI %+v", b[0])
	}
	remove(t, p)
	eventually(t, "release waits for the node", func() error {
		if s := ledgerOf(t, id).Spec.Slots[0]; s.State != ledgerv1.Releasing {
			return fmt.Errorf("slot is %s", s.State)
		}
		return nil
	})
	branches(t, id, 1)
	confirm(t, id, p)
	branches(t, id, 0)
	// Without a label and without branch pods there is no room, but the trunk stays.
	label(t, "whole", false)
	capacity(t, "whole", 0)
	if trunks, _ := inEC2(t, id); trunks != 1 {
		t.Fatalf("%d trunks", trunks)
	}
	// The node is replaced under its name: everything of the old instance goes, the new one is set up.
	must(t, w.admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "whole"}}))
	fresh := launch(t, "whole", "m5.large", w.subnet)
	if _, err := w.ec2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}}); err != nil {
		t.Fatal(err)
	}
	ready(t, "whole", fresh, 9)
	eventually(t, "nothing of the old instance is left", func() error {
		trunks, b := inEC2(t, id)
		if l := ledgerOf(t, id); l != nil || trunks+len(b) > 0 {
			return fmt.Errorf("ledger %v, %d trunks, %d branches", l, trunks, len(b))
		}
		return nil
	})
}

func TestP22TheTenthPodIsToldWhoUsesTheNine(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "ten")
	id := launch(t, "ten", "m5.large", w.subnet)
	ready(t, "ten", id, 9)
	var nine []*corev1.Pod
	for i := range 9 {
		nine = append(nine, pod(t, "ten", fmt.Sprintf("p%d", i), "ten"))
	}
	for _, p := range nine {
		annotated(t, p)
	}
	branches(t, id, 9)
	tenth := pod(t, "ten", "tenth", "")
	tenth.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable}}
	must(t, w.admin.Status().Update(t.Context(), tenth))
	told(t, tenth, "InsufficientBranchENIs", "node ten has 9 of 9", "ten/p0", "ten/p8")
	// One ends and its successor has the scheduler's word already, while the slot waits: still nine of nine.
	remove(t, nine[0])
	pod(t, "ten", "p9", "ten")
	eventually(t, "the ended pod's slot waits", func() error { // whichever it is: nine were bound at once
		for _, s := range ledgerOf(t, id).Spec.Slots {
			if s.PodName == "p0" && s.State == ledgerv1.Releasing {
				return nil
			}
		}
		return fmt.Errorf("%+v", ledgerOf(t, id).Spec.Slots)
	})
	must(t, annotatePod(w.admin, tenth, "example.com/look", "again", ""))
	told(t, tenth, "InsufficientBranchENIs", "node ten has 9 of 9 branch ENIs in use by ten/p1, ", "ten/p9; 1 more waits for the node to confirm")
	// The instance goes with all its pods: nothing stays in EC2.
	must(t, w.admin.Delete(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "ten"}}))
	_, err := w.ec2.TerminateInstances(t.Context(), &ec2.TerminateInstancesInput{InstanceIds: []string{id}})
	must(t, err)
	branches(t, id, 0)
	eventually(t, "ledger is gone", func() error {
		if l := ledgerOf(t, id); l != nil {
			return fmt.Errorf("%+v", l.Spec)
		}
		return nil
	})
}

func TestP23AnUnsupportedInstanceTypeIsLeftAlone(t *testing.T) {
	start(t, 0, nil)
	id := launch(t, "small", "t3.medium", w.subnet)
	ask(t, "small")
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "small"), &n))
	told(t, &n, "UnsupportedInstanceType", "t3.medium")
	if trunks, _ := inEC2(t, id); trunks != 0 || ledgerOf(t, id) != nil {
		t.Fatal("a trunk or a ledger was made")
	}
}

func TestP44EC2RefusalsAreSaidAndOvercome(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "refused")
	id := launch(t, "refused", "m5.large", w.subnet)
	ready(t, "refused", id, 9)
	for i, tt := range []struct {
		api, code, reason string
		words             []string
	}{
		{"CreateNetworkInterface", "UnauthorizedOperation", "UnauthorizedOperation", []string{"ec2:CreateNetworkInterface", w.subnet}},
		{"AssociateTrunkInterface", "RequestLimitExceeded", "Throttled", []string{"ec2:AssociateTrunkInterface"}},
		{"CreateNetworkInterface", "InsufficientFreeAddressesInSubnet", "InsufficientFreeAddressesInSubnet", []string{w.subnet}},
		{"CreateNetworkInterface", "InvalidGroup.NotFound", "SecurityGroupNotFound", []string{"SecurityGroupPolicy"}},
	} {
		clear := w.region.Faults().Add(labec2.Fault{API: tt.api, Role: "controller", Times: -1, Code: tt.code})
		t.Cleanup(clear)
		p := pod(t, "refused", fmt.Sprintf("p%d", i), "refused")
		told(t, p, tt.reason, tt.words...)
		clear()
		annotated(t, p)
	}
	branches(t, id, 4)
}

func TestP6AVLANThatEC2AlreadyUsesIsLearnedAndPassedOver(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "taken")
	id := launch(t, "taken", "m5.large", w.subnet)
	ready(t, "taken", id, 9)
	e, err := w.ec2.CreateNetworkInterface(t.Context(), &ec2.CreateNetworkInterfaceInput{SubnetId: &w.subnet})
	must(t, err)
	_, err = w.ec2.AssociateTrunkInterface(t.Context(), &ec2.AssociateTrunkInterfaceInput{
		BranchInterfaceId: e.NetworkInterface.NetworkInterfaceId, TrunkInterfaceId: awssdk.String(ledgerOf(t, id).Spec.TrunkENIID), VlanId: awssdk.Int32(1)})
	must(t, err)
	p := pod(t, "taken", "green", "taken")
	if value := annotated(t, p); !strings.Contains(value, `"vlanId":2`) {
		t.Fatalf("annotation %s", value)
	}
	told(t, p, "VLANInUse", *e.NetworkInterface.NetworkInterfaceId)
	if s := ledgerOf(t, id).Spec.Slots[0]; s.State != ledgerv1.Occupied {
		t.Fatalf("slot %+v", s)
	}
	branches(t, id, 1)
}
