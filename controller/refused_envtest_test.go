//go:build envtest

package controller_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/controller"
	labec2 "github.com/branchline-cni/branchline/lab/ec2"
)

// without is the controller's policy as it is shipped, less some actions.
func without(t *testing.T, actions ...string) string {
	t.Helper()
	b, err := os.ReadFile("../config/vpc-controller/iam-policy.json")
	must(t, err)
	var p struct {
		Version   string
		Statement []map[string]any
	}
	must(t, json.Unmarshal(b, &p))
	for _, s := range p.Statement {
		s["Action"] = slices.DeleteFunc(s["Action"].([]any), func(a any) bool { return slices.Contains(actions, a.(string)) })
	}
	p.Statement = slices.DeleteFunc(p.Statement, func(s map[string]any) bool { return len(s["Action"].([]any)) == 0 })
	b, err = json.Marshal(p)
	must(t, err)
	return string(b)
}

const nothing = `{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":["sts:GetCallerIdentity"],"Resource":"*"}]}`

// The IAM of the lab decides, as AWS's does, and says what was refused in the words of its message.
func TestADeniedActionIsNamedWithItsResource(t *testing.T) {
	must(t, role(t.Context(), "bare", nothing))
	start(t, 0, func(o *controller.Options) { o.EC2 = as(t, "bare") })
	namespace(t, "denied")
	id := launch(t, "denied", "m5.large", w.subnet)
	ask(t, "denied")
	var n corev1.Node
	must(t, w.admin.Get(t.Context(), keyOf("", "denied"), &n))
	// An action that knows no resources: the event says what it was for.
	told(t, &n, "UnauthorizedOperation", "ec2:DescribeInstances", id, "AmazonEKSVPCResourceController")
	must(t, allow(t.Context(), "bare", without(t, "ec2:CreateNetworkInterface")))
	told(t, &n, "UnauthorizedOperation", "ec2:CreateNetworkInterface", "arn:aws:ec2:us-west-2:", "the trunk of instance "+id)
	must(t, allow(t.Context(), "bare", without(t)))
	ready(t, "denied", id, 9)
	for i, tt := range []struct {
		action string
		words  []string
	}{
		{"ec2:CreateNetworkInterface", []string{"arn:aws:ec2:us-west-2:", "a branch of trunk " + ledgerOf(t, id).Spec.TrunkENIID}},
		{"ec2:CreateNetworkInterfacePermission", []string{"arn:aws:ec2:us-west-2:"}},
		{"ec2:AssociateTrunkInterface", []string{"on VLAN id"}},
		{"ec2:CreateTags", []string{"arn:aws:ec2:us-west-2:"}},
	} {
		must(t, allow(t.Context(), "bare", without(t, tt.action)))
		p := pod(t, "denied", fmt.Sprint("p", i), "denied")
		told(t, p, "UnauthorizedOperation", append(tt.words, tt.action)...)
		must(t, allow(t.Context(), "bare", without(t)))
		annotated(t, p)
	}
	branches(t, id, 4)
	// And on the way back.
	must(t, allow(t.Context(), "bare", without(t, "ec2:DeleteNetworkInterface", "ec2:DisassociateTrunkInterface")))
	p := &corev1.Pod{}
	must(t, w.admin.Get(t.Context(), keyOf("denied", "p0"), p))
	remove(t, p)
	confirm(t, id, p)
	told(t, &n, "UnauthorizedOperation", "clean-up", "ec2:DisassociateTrunkInterface")
	must(t, allow(t.Context(), "bare", without(t)))
	branches(t, id, 3)
}

func TestATrunkThatNeverComesIsSaidOnceAndTriedWithBackOff(t *testing.T) {
	k, _ := start(t, 0, nil)
	for _, tt := range []struct{ api, code, reason, word string }{
		{"AttachNetworkInterface", "AttachmentLimitExceeded", "AttachmentLimitExceeded", "detach one"},
		{"CreateNetworkInterface", "NetworkInterfaceLimitExceeded", "NetworkInterfaceLimitExceeded", "quota"},
	} {
		name := "never-" + strings.ToLower(tt.api[:6])
		namespace(t, name)
		clear := w.region.Faults().Add(labec2.Fault{API: tt.api, Role: "controller", Times: -1, Code: tt.code})
		t.Cleanup(clear)
		id := launch(t, name, "m5.large", w.subnet)
		p := pod(t, name, "p", name)
		ask(t, name)
		var n corev1.Node
		must(t, w.admin.Get(t.Context(), keyOf("", name), &n))
		told(t, &n, tt.reason, tt.word, id)
		told(t, p, "WaitingForTrunk", name)
		before := len(k.effects())
		time.Sleep(1500 * time.Millisecond)
		tries := 0
		for _, c := range k.effects()[before:] {
			if c == "EC2 "+tt.api {
				tries++
			}
		}
		if tries < 1 || tries > 4 { // 200 ms, doubled each time
			t.Errorf("%s: %d tries in 1.5 s", tt.api, tries)
		}
		var l corev1.EventList
		must(t, w.admin.List(t.Context(), &l, client.InNamespace("default")))
		for _, e := range l.Items {
			if e.InvolvedObject.UID == n.UID && e.Reason == tt.reason && e.Count > 1 {
				t.Errorf("said %d times: %s", e.Count, e.Message)
			}
		}
		trunks, _ := inEC2(t, id)
		if want := map[string]int{"AttachNetworkInterface": 1}[tt.api]; trunks != want {
			t.Errorf("%s: %d trunk ENIs, want %d", tt.api, trunks, want)
		}
		clear()
		ready(t, name, id, 9)
		annotated(t, p)
		if trunks, _ := inEC2(t, id); trunks != 1 {
			t.Errorf("%s: %d trunk ENIs in the end", tt.api, trunks)
		}
	}
}
