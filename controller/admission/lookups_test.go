package admission

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

// away is an API server that answers nothing.
type away struct{ client.Reader }

func (away) Get(context.Context, client.ObjectKey, client.Object, ...client.GetOption) error {
	return errors.New("the API server is away")
}

// TestP3 is "the webhook breaks clusters that don't use the feature": where no policy selects by ServiceAccount, nothing
// outside the webhook's own memory is asked, so there is nothing to fail.
func TestP3NothingIsLookedUpWhereNoPolicySelectsByServiceAccount(t *testing.T) {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), v1beta1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	policyOf := func(namespace string, spec v1beta1.SecurityGroupPolicySpec) client.Object {
		spec.SecurityGroups = v1beta1.GroupIDs{Groups: []string{"sg-1"}}
		return &v1beta1.SecurityGroupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: "p"}, Spec: spec}
	}
	pods := v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "green"}}}
	accounts := v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}}}
	for name, tt := range map[string]struct {
		policies         []client.Object
		allowed, changed bool
	}{
		"no policy at all":              {nil, true, false},
		"policies elsewhere":            {[]client.Object{policyOf("other", accounts), policyOf("another", pods)}, true, false},
		"a policy that selects by pods": {[]client.Object{policyOf("ns", pods)}, true, true},
		// Without the account's labels any answer could be wrong.
		"a policy that selects by accounts": {[]client.Object{policyOf("ns", accounts)}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			cache := fake.NewClientBuilder().WithScheme(s).WithObjects(tt.policies...).Build()
			h := &webhook.Admission{Handler: &MutatePod{Policies: cache, Live: away{}, Decoder: admission.NewDecoder(s), Log: slog.New(slog.DiscardHandler)}}
			r := ask(t, h, review("CREATE", "me", `{"metadata":{"name":"p","labels":{"app":"green"}},"spec":{"containers":[{"name":"c"}]}}`, ""))
			if r.Allowed != tt.allowed || strings.Contains(string(r.Patch), "pod-eni") != tt.changed {
				t.Errorf("allowed %t with patch %s", r.Allowed, r.Patch)
			}
		})
	}
}
