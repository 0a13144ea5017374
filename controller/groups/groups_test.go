package groups

import (
	"context"
	"errors"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

func sgp(namespace, name, group string, spec v1beta1.SecurityGroupPolicySpec) *v1beta1.SecurityGroupPolicy {
	spec.SecurityGroups = v1beta1.GroupIDs{Groups: []string{group}}
	return &v1beta1.SecurityGroupPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: spec}
}

func labels(v string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": v}}
}

// TestP3TheServiceAccountIsReadOnlyWhereAPolicySelectsByIt: clusters that don't use the feature have nothing to fail.
func TestP3TheServiceAccountIsReadOnlyWhereAPolicySelectsByIt(t *testing.T) {
	s := runtime.NewScheme()
	if err := errors.Join(corev1.AddToScheme(s), v1beta1.AddToScheme(s)); err != nil {
		t.Fatal(err)
	}
	byPod := sgp("shop", "by-pod", "sg-pod", v1beta1.SecurityGroupPolicySpec{PodSelector: labels("green")})
	byAccount := sgp("shop", "by-account", "sg-account", v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: labels("db")})
	elsewhere := sgp("other", "all", "sg-other", v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}})
	account := func(name string) *corev1.ServiceAccount {
		return &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: map[string]string{"app": "db"}}}
	}
	for name, tt := range map[string]struct {
		objects []client.Object
		account string
		broken  bool
		want    []string
		reads   int
		fails   bool
	}{
		"no policy in the namespace":         {objects: []client.Object{elsewhere}, broken: true},
		"only by the pod's labels":           {objects: []client.Object{byPod, elsewhere}, broken: true, want: []string{"sg-pod"}},
		"by the ServiceAccount as well":      {objects: []client.Object{byPod, byAccount, account("x")}, account: "x", want: []string{"sg-account", "sg-pod"}, reads: 1},
		"by the default ServiceAccount":      {objects: []client.Object{byAccount, account("default")}, want: []string{"sg-account"}, reads: 1},
		"a ServiceAccount that isn't there":  {objects: []client.Object{byAccount}, account: "x", reads: 1},
		"one that can't be read is an error": {objects: []client.Object{byAccount}, account: "x", broken: true, reads: 1, fails: true},
	} {
		reads := 0
		c := interceptor.NewClient(fake.NewClientBuilder().WithScheme(s).WithObjects(tt.objects...).Build(), interceptor.Funcs{
			Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
				if reads++; tt.broken {
					return errors.New("connection refused")
				}
				return c.Get(ctx, key, o, opts...)
			},
		})
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "p", Labels: map[string]string{"app": "green"}}, Spec: corev1.PodSpec{ServiceAccountName: tt.account}}
		d, err := Of(t.Context(), c, c, pod)
		slices.Sort(d.Groups)
		if !slices.Equal(d.Groups, tt.want) || reads != tt.reads || (err != nil) != tt.fails {
			t.Errorf("%s: groups %v, %d reads, %v; want %v", name, d.Groups, reads, err, tt.want)
		}
	}
}
