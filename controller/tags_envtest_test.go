//go:build envtest

package controller_test

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	ec2types "github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1alpha1"
)

func TestTheTagsOfTheCNINodeAreOnEachENIOfTheNode(t *testing.T) {
	start(t, 0, nil)
	namespace(t, "tags")
	id := launch(t, "tags", "m5.large", w.subnet)
	has := func(e ec2types.NetworkInterface, key, value string) bool {
		return slices.ContainsFunc(e.TagSet, func(t ec2types.Tag) bool { return *t.Key == key && *t.Value == value })
	}
	eventually(t, "the CNINode", func() error {
		var n v1alpha1.CNINode
		key := client.ObjectKey{Name: "tags"}
		if err := w.admin.Get(t.Context(), key, &n); err != nil {
			return err
		}
		n.Spec.Tags = map[string]string{"team": "shop", "eks:eni:owner": "somebody"}
		return w.admin.Update(t.Context(), &n)
	})
	ready(t, "tags", id, 9)
	p := pod(t, "tags", "p", "tags")
	annotated(t, p)
	_, branches := inEC2(t, id)
	if len(branches) != 1 {
		t.Fatalf("%d branch ENIs", len(branches))
	}
	for what, e := range map[string]ec2types.NetworkInterface{"trunk": trunkOf(t, id), "branch": branches[0]} {
		var errs []error
		for key, value := range map[string]string{"team": "shop", "eks:eni:owner": "eks-vpc-resource-controller"} {
			if !has(e, key, value) {
				errs = append(errs, fmt.Errorf("no tag %s=%s", key, value))
			}
		}
		if err := errors.Join(errs...); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}
