//go:build envtest

package controller_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/controller"
	"github.com/branchline-cni/branchline/controller/admission"
	"github.com/branchline-cni/branchline/policy"
)

// serving makes a controller serve its webhooks on a free port of the loopback.
func serving(t *testing.T) (at string, change func(*controller.Options)) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	defer l.Close()
	at = l.Addr().String()
	t.Cleanup(func() { noWebhooks(t) })
	return at, func(o *controller.Options) {
		o.Webhooks = &controller.Webhooks{URL: "https://" + at, BindAddress: "127.0.0.1", Port: l.Addr().(*net.TCPAddr).Port}
	}
}

// noWebhooks takes the configurations away: without their controller they would stand in the way of other tests.
func noWebhooks(t *testing.T) {
	t.Helper()
	for _, name := range []string{admission.MutatingName, admission.HostedMutatingName} {
		must(t, client.IgnoreNotFound(w.admin.Delete(context.Background(), &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}})))
	}
	for _, name := range []string{admission.ValidatingName, admission.HostedValidatingName} {
		must(t, client.IgnoreNotFound(w.admin.Delete(context.Background(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: name}})))
	}
}

func plain(namespace, name string, labels map[string]string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name, Labels: labels},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "first", Image: "i"}, {Name: "second", Image: "i"}}},
	}
}

// admitted creates the pod as a dry run and returns what would be stored.
func admitted(p *corev1.Pod) (*corev1.Pod, error) {
	p = p.DeepCopy()
	return p, w.admin.Create(context.Background(), p, client.DryRunAll)
}

func asks(p *corev1.Pod) bool {
	r := p.Spec.Containers[0].Resources
	l, q := r.Limits[policy.Resource], r.Requests[policy.Resource]
	return l.Value() == 1 && q.Value() == 1
}

var green = map[string]string{"app": "green-pod"}

func hooked(t *testing.T, namespace string) {
	t.Helper()
	eventually(t, "webhooks answer", func() error {
		p, err := admitted(plain(namespace, "probe", green))
		if err == nil && !asks(p) {
			err = errors.New("not changed")
		}
		if err != nil {
			return err
		}
		bad := plain(namespace, "probe", nil)
		bad.Annotations = map[string]string{policy.Resource: "[]"}
		if _, err = admitted(bad); err == nil {
			return errors.New("not guarded")
		}
		return nil
	})
}

func TestThePodWebhookGivesTheRequestToWhomAPolicySelects(t *testing.T) {
	namespace(t, "hooks")
	must(t, w.admin.Create(t.Context(), &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "hookless"}}))
	must(t, w.admin.Create(t.Context(), &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: "hooks", Name: "db", Labels: map[string]string{"role": "db"}}}))
	must(t, w.admin.Create(t.Context(), &v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "hooks", Name: "by-account"},
		Spec: v1beta1.SecurityGroupPolicySpec{ServiceAccountSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"role": "db"}},
			SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-0000000000000000a", w.group}}},
	}))
	_, change := serving(t)
	start(t, 0, change)
	hooked(t, "hooks")
	fargate := map[string]string{policy.FargateProfileLabel: "f"}
	account := func(p *corev1.Pod) { p.Spec.ServiceAccountName = "db" }
	set := func(value string) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.Annotations = map[string]string{admission.FargateAnnotation: value} }
	}
	for _, tt := range []struct {
		what, namespace string
		labels          map[string]string
		change          []func(*corev1.Pod)
		asks            bool
		fargate         string // the annotation
	}{
		{"selected", "hooks", green, nil, true, ""},
		{"not selected", "hooks", map[string]string{"app": "red-pod"}, nil, false, ""},
		{"no policy in the namespace", "hookless", green, nil, false, ""},
		{"on the host's network", "hooks", green, []func(*corev1.Pod){func(p *corev1.Pod) { p.Spec.HostNetwork = true }}, false, ""},
		{"selected by its account", "hooks", nil, []func(*corev1.Pod){account}, true, ""},
		{"on Fargate", "hooks", fargate, []func(*corev1.Pod){account}, false, "sg-0000000000000000a," + w.group},
		{"on Fargate, with groups of its own choice", "hooks", fargate, []func(*corev1.Pod){account, set("sg-0bad")}, false, "sg-0000000000000000a," + w.group},
		{"on Fargate, not selected, with groups of its own choice", "hooks", fargate, []func(*corev1.Pod){set("sg-0bad")}, false, ""},
		{"on Fargate, no policy", "hookless", fargate, nil, false, ""},
	} {
		p := plain(tt.namespace, "p", tt.labels)
		for _, f := range tt.change {
			f(p)
		}
		got, err := admitted(p)
		if err != nil {
			t.Errorf("%s: %v", tt.what, err)
			continue
		}
		value, set := got.Annotations[admission.FargateAnnotation]
		if asks(got) != tt.asks || value != tt.fargate || set != (tt.fargate != "") || len(got.Spec.Containers[1].Resources.Limits) > 0 {
			t.Errorf("%s: asks %v, annotations %v, %+v", tt.what, asks(got), got.Annotations, got.Spec.Containers)
		}
	}
	p := plain("hooks", "fargate", fargate)
	account(p)
	must(t, w.admin.Create(t.Context(), p))
	t.Cleanup(func() { w.admin.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	for who, c := range map[string]client.Client{"the administrator": w.admin, "the controller": impersonate(t, "eks:vpc-resource-controller", nil)} {
		if err := annotatePod(c, p, admission.FargateAnnotation, "sg-0bad", ""); !apierrors.IsForbidden(err) {
			t.Errorf("%s changed the groups of a Fargate pod: %v", who, err)
		}
	}
}

// impersonate is a client as somebody else, with what a token of theirs says beyond the name.
func impersonate(t *testing.T, user string, extra map[string][]string) client.Client {
	t.Helper()
	cfg := rest.CopyConfig(w.env.Config)
	cfg.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}, Extra: extra}
	c, err := client.New(cfg, client.Options{Scheme: w.admin.Scheme()})
	must(t, err)
	return c
}

func annotatePod(c client.Client, p *corev1.Pod, key, value, subresource string) error {
	quoted := `"` + value + `"`
	if value == "" {
		quoted = "null"
	}
	patch := client.RawPatch("application/merge-patch+json", fmt.Appendf(nil, `{"metadata":{"annotations":{%q:%s}}}`, key, quoted))
	if subresource == "" {
		return c.Patch(context.Background(), p.DeepCopy(), patch)
	}
	return c.SubResource(subresource).Patch(context.Background(), p.DeepCopy(), patch)
}

func TestTheAnnotationIsTheControllersAlone(t *testing.T) {
	namespace(t, "guard")
	_, change := serving(t)
	_, stop := start(t, 0, change)
	hooked(t, "guard")
	fresh := plain("guard", "p", nil)
	fresh.Annotations = map[string]string{policy.Resource: "[]"}
	for who, c := range map[string]client.Client{"the administrator": w.admin, "the controller": impersonate(t, "eks:vpc-resource-controller", nil)} {
		if err := c.Create(t.Context(), fresh.DeepCopy()); !apierrors.IsForbidden(err) || who == "the administrator" && !strings.Contains(err.Error(), policy.Resource) {
			t.Errorf("%s created a pod with the annotation: %v", who, err)
		}
	}
	p := plain("guard", "p", nil)
	must(t, w.admin.Create(t.Context(), p))
	t.Cleanup(func() { w.admin.Delete(context.Background(), p, client.GracePeriodSeconds(0)) })
	refused := func(when string) {
		t.Helper()
		for _, value := range []string{"mine", ""} {
			var now corev1.Pod
			must(t, w.admin.Get(t.Context(), client.ObjectKeyFromObject(p), &now))
			if now.Annotations[policy.Resource] == value {
				continue
			}
			for _, subresource := range []string{"", "status"} {
				if err := annotatePod(w.admin, p, policy.Resource, value, subresource); err == nil {
					t.Errorf("%s: the administrator set the annotation to %q by %q", when, value, subresource)
				}
			}
		}
		// What has nothing to do with it passes, whoever asks and whether we are there or not.
		must(t, annotatePod(w.admin, p, "example.com/other", when, ""))
		must(t, annotatePod(w.admin, p, "example.com/other", when+" too", "status"))
		if _, err := admitted(plain("guard", "bystander", nil)); err != nil {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("before")
	must(t, annotatePod(impersonate(t, user, nil), p, policy.Resource, "by the ServiceAccount", ""))
	must(t, annotatePod(impersonate(t, "eks:vpc-resource-controller", nil), p, policy.Resource, "by the user", ""))
	refused("after")
	bindings := func(c client.Client) map[string]func(annotations map[string]string) error {
		binding := func(annotations map[string]string) *corev1.Binding {
			return &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Namespace: "guard", Name: "p", Annotations: annotations}, Target: corev1.ObjectReference{Kind: "Node", Name: "anywhere"}}
		}
		return map[string]func(map[string]string) error{
			"pods/binding": func(a map[string]string) error {
				return c.SubResource("binding").Create(t.Context(), p.DeepCopy(), binding(a))
			},
			"bindings": func(a map[string]string) error { return c.Create(t.Context(), binding(a)) },
		}
	}
	for _, key := range []string{policy.Resource, policy.StampKey, admission.FargateAnnotation} {
		for by, bind := range bindings(w.admin) {
			if err := bind(map[string]string{key: "[]", "example.com/other": "x"}); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), key) {
				t.Errorf("%s by %s: %v", key, by, err)
			}
		}
	}
	must(t, stop())
	refused("while the controller is away")
	for by, bind := range bindings(w.admin) {
		if err := bind(map[string]string{policy.Resource: "[]"}); err == nil {
			t.Errorf("the annotation by %s while the controller is away", by)
		}
	}
	// Scheduling does not depend on the webhook.
	must(t, bindings(w.admin)["pods/binding"](nil))
}

func TestTheAgentsServiceAccountChangesOnlyItsLabelsOfANode(t *testing.T) {
	namespace(t, "guard-node")
	_, change := serving(t)
	start(t, 0, change)
	hooked(t, "guard-node")
	register(t, "guarded", "m5.large", "i-00000000000000001")
	t.Cleanup(func() {
		w.admin.Delete(context.Background(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "guarded"}})
	})
	agent := impersonate(t, admission.AgentUser, map[string][]string{"authentication.kubernetes.io/node-name": {"guarded"}})
	for body, allowed := range map[string]bool{
		`{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":"true"}}}`:                   true,
		`{"metadata":{"labels":{"vpc.amazonaws.com/eniConfig":"us-west-2a"}}}`:                      true,
		`{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":null}}}`:                     true,
		`{"metadata":{"labels":{"node-role.kubernetes.io/control-plane":""}}}`:                      false,
		`{"metadata":{"annotations":{"a":"b"}}}`:                                                    false,
		`{"metadata":{"finalizers":["example.com/mine"]}}`:                                          false,
		`{"spec":{"unschedulable":true}}`:                                                           false,
		`{"spec":{"taints":[{"key":"a","effect":"NoExecute"}]}}`:                                    false,
		`{"metadata":{"labels":{"vpc.amazonaws.com/eniConfig":"x","other":"y"}}}`:                   false,
		`{"metadata":{"ownerReferences":[{"apiVersion":"v1","kind":"Node","name":"x","uid":"y"}]}}`: false,
	} {
		err := agent.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "guarded"}}, client.RawPatch("application/merge-patch+json", []byte(body)))
		if (err == nil) != allowed || err != nil && !strings.Contains(err.Error(), "vnode.vpc.k8s.aws") {
			t.Errorf("%s: %v", body, err)
		}
	}
	must(t, w.admin.Patch(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "guarded"}}, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"labels":{"other":"y"}}}`))))
}

func TestWebhookCertificatesOutliveTheControllerAndTheConfigurationsAreRestored(t *testing.T) {
	namespace(t, "certs")
	at, change := serving(t)
	_, stop := start(t, 0, change)
	hooked(t, "certs")
	secret := func() map[string][]byte {
		var s corev1.Secret
		must(t, w.admin.Get(t.Context(), client.ObjectKey{Namespace: admission.SecretNamespace, Name: admission.SecretName}, &s))
		return s.Data
	}
	before := secret()
	if string(before["ca.crt"]) == "" || strings.Contains(string(before["ca.crt"]), "PRIVATE") {
		t.Fatalf("Secret with %v", maps.Keys(before))
	}
	bundles := func() error {
		var m admissionregistrationv1.MutatingWebhookConfiguration
		var v admissionregistrationv1.ValidatingWebhookConfiguration
		if err := errors.Join(w.admin.Get(t.Context(), client.ObjectKey{Name: admission.MutatingName}, &m), w.admin.Get(t.Context(), client.ObjectKey{Name: admission.ValidatingName}, &v)); err != nil {
			return err
		}
		if len(m.Webhooks) != 1 || len(v.Webhooks) != 3 {
			return fmt.Errorf("%d and %d webhooks", len(m.Webhooks), len(v.Webhooks))
		}
		for _, b := range [][]byte{m.Webhooks[0].ClientConfig.CABundle, v.Webhooks[0].ClientConfig.CABundle, v.Webhooks[1].ClientConfig.CABundle, v.Webhooks[2].ClientConfig.CABundle} {
			if !bytes.Equal(b, before["ca.crt"]) {
				return fmt.Errorf("caBundle %.40q", b)
			}
		}
		return nil
	}
	must(t, bundles())
	other, err := admission.Issue(nil, []string{"other"}, time.Now())
	must(t, err)
	var m admissionregistrationv1.MutatingWebhookConfiguration
	must(t, w.admin.Get(t.Context(), client.ObjectKey{Name: admission.MutatingName}, &m))
	m.Webhooks[0].ClientConfig.CABundle = other.CA
	must(t, w.admin.Update(t.Context(), &m))
	must(t, w.admin.Delete(t.Context(), &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: admission.ValidatingName}}))
	eventually(t, "configurations as they were", bundles)
	must(t, stop())
	// An edit while nobody looks, and another controller with another clock.
	must(t, w.admin.Get(t.Context(), client.ObjectKey{Name: admission.MutatingName}, &m))
	m.Webhooks[0].ClientConfig.CABundle = other.CA
	must(t, w.admin.Update(t.Context(), &m))
	start(t, 0, change)
	eventually(t, "configurations as they were", bundles)
	hooked(t, "certs")
	if !maps.EqualFunc(before, secret(), bytes.Equal) {
		t.Error("the restart made new certificates")
	}
	c, err := tls.Dial("tcp", at, &tls.Config{InsecureSkipVerify: true}) // what it serves is compared
	must(t, err)
	defer c.Close()
	if pair, err := tls.X509KeyPair(before[corev1.TLSCertKey], before[corev1.TLSPrivateKeyKey]); err != nil || !c.ConnectionState().PeerCertificates[0].Equal(pair.Leaf) {
		t.Errorf("serves another certificate: %v", err)
	}
}

// slow holds back the list of policies until it is let go.
type slow struct {
	next http.RoundTripper
	held chan struct{}
	seen *atomic.Bool
}

func (s slow) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Method == http.MethodGet && strings.Contains(req.URL.Path, "/securitygrouppolicies") {
		s.seen.Store(true)
		select {
		case <-s.held:
		case <-req.Context().Done():
			return nil, req.Context().Err()
		}
	}
	return s.next.RoundTrip(req)
}

// Without the policies every answer could be wrong: the pod waits for them.
func TestP3NoPodIsAnsweredBeforeThePoliciesAreRead(t *testing.T) {
	namespace(t, "early")
	at, change := serving(t)
	_, stop := start(t, 0, change) // leaves the configurations
	hooked(t, "early")
	must(t, stop())
	held := make(chan struct{})
	var seen atomic.Bool
	start(t, 0, func(o *controller.Options) {
		change(o)
		o.Config.Wrap(func(rt http.RoundTripper) http.RoundTripper { return slow{rt, held, &seen} })
	})
	eventually(t, "the webhooks' port", func() error {
		c, err := net.DialTimeout("tcp", at, time.Second)
		if err != nil || !seen.Load() {
			return fmt.Errorf("%v, policies asked for: %v", err, seen.Load())
		}
		return c.Close()
	})
	release := time.AfterFunc(500*time.Millisecond, func() { close(held) })
	defer release.Stop()
	began := time.Now()
	p, err := admitted(plain("early", "p", green))
	if err != nil || !asks(p) || time.Since(began) < 400*time.Millisecond {
		t.Fatalf("after %v: %v, %+v", time.Since(began), err, p.Spec.Containers)
	}
}
