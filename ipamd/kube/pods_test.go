package kube

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/branchline-cni/branchline/policy"
)

func TestWhatTheKubeletHasWrittenSaysWhetherAPodWasWiredBefore(t *testing.T) {
	status := func(s corev1.ContainerStatus) corev1.PodStatus {
		return corev1.PodStatus{Phase: corev1.PodPending, ContainerStatuses: []corev1.ContainerStatus{s}}
	}
	for name, tt := range map[string]struct {
		status corev1.PodStatus
		want   bool
	}{
		"new":                       {corev1.PodStatus{}, false},
		"scheduled":                 {corev1.PodStatus{Phase: corev1.PodPending, HostIP: "192.168.0.1"}, false},
		"being created":             {status(corev1.ContainerStatus{State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}), false},
		"has an address":            {corev1.PodStatus{Phase: corev1.PodPending, PodIP: "192.168.0.7"}, true},
		"runs":                      {corev1.PodStatus{Phase: corev1.PodRunning}, true},
		"a container was made":      {status(corev1.ContainerStatus{ContainerID: "containerd://1"}), true},
		"a container ended before":  {status(corev1.ContainerStatus{LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{}}}), true},
		"its image can't be pulled": {corev1.PodStatus{Phase: corev1.PodPending, PodIPs: []corev1.PodIP{{IP: "192.168.0.7"}}}, true},
		"an init container was made": {corev1.PodStatus{Phase: corev1.PodPending,
			InitContainerStatuses: []corev1.ContainerStatus{{ContainerID: "containerd://1"}}}, true},
	} {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{"app": "green"}, CreationTimestamp: metav1.Unix(100, 0),
			Annotations: map[string]string{policy.StampKey: "[]", "other": "x"}}, Spec: corev1.PodSpec{ServiceAccountName: "db"}, Status: tt.status}
		kept, err := trim(p)
		if err != nil {
			t.Fatal(err)
		}
		if whole, small := podOf(p), podOf(kept.(*corev1.Pod)); whole.WiredBefore != tt.want || small.WiredBefore != tt.want {
			t.Errorf("%s: %v, from what is kept %v", name, whole.WiredBefore, small.WiredBefore)
		}
		o := kept.(*corev1.Pod)
		if o.Labels["app"] != "green" || !o.CreationTimestamp.Equal(&p.CreationTimestamp) || o.Annotations[policy.StampKey] != "[]" || len(o.Annotations) != 1 || o.Spec.ServiceAccountName != "db" {
			t.Errorf("%s: kept %+v", name, o)
		}
	}
}
