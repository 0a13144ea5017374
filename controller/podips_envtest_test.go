//go:build envtest

package controller_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/config"
	"github.com/branchline-cni/branchline/test/apiserver"
)

// With ANNOTATE_POD_IP's right a node that was broken into could change the images of any pod: the policy that comes with it
// leaves it one annotation, of its own node's pods.
func TestTheRightToAnnotatePodsIsForOneAnnotationOfTheNodesOwnPods(t *testing.T) {
	must(t, client.IgnoreAlreadyExists(w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ips"}})))
	agent := agentOf(t, "ips-mine")
	mine, theirs := pod(t, "ips", "mine", "ips-mine"), pod(t, "ips", "theirs", "ips-theirs")
	patch := func(p *corev1.Pod, body string) error {
		return agent.Patch(t.Context(), p.DeepCopy(), client.RawPatch("application/merge-patch+json", []byte(body)))
	}
	const annotation = `{"metadata":{"annotations":{"vpc.amazonaws.com/pod-ips":"192.168.0.9"}}}`
	if err := patch(mine, annotation); err == nil {
		t.Fatal("the agent's own role lets it change pods")
	}
	manifest := config.AWSNodePodIPs()
	must(t, apiserver.Apply(t.Context(), w.admin, manifest))
	t.Cleanup(func() { unapply(t, manifest) })
	const denied = "the node agent may"
	eventually(t, "the policy holds", func() error {
		if err := patch(theirs, annotation); err == nil || !strings.Contains(err.Error(), denied) {
			return errors.New("another node's pod can be annotated, or nothing can")
		}
		return nil
	})
	must(t, annotatePod(w.admin, mine, "example.com/other", "kept", ""))
	must(t, patch(mine, annotation))
	must(t, patch(mine, `{"metadata":{"annotations":{"vpc.amazonaws.com/pod-ips":""}}}`))
	must(t, patch(mine, `{"metadata":{"annotations":{"vpc.amazonaws.com/pod-ips":null}}}`))
	must(t, patch(mine, annotation))
	for what, body := range map[string]string{
		"its end":               `{"spec":{"activeDeadlineSeconds":1}}`,
		"a label":               `{"metadata":{"labels":{"app":"other"}}}`,
		"another annotation":    `{"metadata":{"annotations":{"example.com/new":"x"}}}`,
		"a changed annotation":  `{"metadata":{"annotations":{"example.com/other":"x"}}}`,
		"an annotation taken":   `{"metadata":{"annotations":{"example.com/other":null}}}`,
		"all annotations":       `{"metadata":{"annotations":null}}`,
		"a finalizer":           `{"metadata":{"finalizers":["example.com/stay"]}}`,
		"an owner":              `{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"n","uid":"u"}]}}`,
		"more beside the right": `{"metadata":{"labels":{"a":"b"},"annotations":{"vpc.amazonaws.com/pod-ips":"192.168.0.8"}}}`,
	} {
		if err := patch(mine, body); err == nil || !strings.Contains(err.Error(), denied) {
			t.Errorf("%s of a pod of its node: %v", what, err)
		}
	}
	image := client.RawPatch("application/json-patch+json", []byte(`[{"op":"replace","path":"/spec/containers/0/image","value":"evil"}]`))
	if err := agent.Patch(t.Context(), mine.DeepCopy(), image); err == nil || !strings.Contains(err.Error(), denied) {
		t.Errorf("the image of a pod of its node: %v", err)
	}
	for what, body := range map[string]string{"its annotation": annotation, "a label": `{"metadata":{"labels":{"app":"other"}}}`} {
		if err := patch(theirs, body); err == nil {
			t.Errorf("%s of a pod of another node was changed", what)
		}
	}
}

// unapply deletes what apply has made.
func unapply(t *testing.T, manifest []byte) {
	r := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(manifest), 4096)
	for {
		o := &unstructured.Unstructured{}
		if err := r.Decode(o); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			t.Error(err)
			return
		}
		if len(o.Object) > 0 {
			if err := w.admin.Delete(context.Background(), o); client.IgnoreNotFound(err) != nil {
				t.Error(err)
			}
		}
	}
}
