package cloud

import (
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"testing"
)

// What users allow to the controller is what it can call, and the tags that CreateNetworkInterface sets.
func TestTheShippedPolicyAllowsWhatIsCalledAndNoMore(t *testing.T) {
	b, err := os.ReadFile("../../config/vpc-controller/iam-policy.json")
	if err != nil {
		t.Fatal(err)
	}
	var p struct{ Statement []struct{ Action []string } }
	if err := json.Unmarshal(b, &p); err != nil {
		t.Fatal(err)
	}
	var allowed []string
	for _, s := range p.Statement {
		allowed = append(allowed, s.Action...)
	}
	slices.Sort(allowed)
	called := []string{"ec2:CreateTags"}
	for m := range reflect.TypeFor[EC2]().NumMethod() {
		called = append(called, "ec2:"+reflect.TypeFor[EC2]().Method(m).Name)
	}
	slices.Sort(called)
	if allowed = slices.Compact(allowed); !slices.Equal(allowed, called) {
		t.Errorf("iam-policy.json allows %v\nthe controller calls %v", allowed, called)
	}
}
