package admission

import (
	"bytes"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/webhook"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/branchline-cni/branchline/api/v1beta1"
)

// hooks are the webhooks as the API server reaches them, with one policy that selects every pod of namespace ns.
func hooks(t testing.TB) map[string]http.Handler {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1beta1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(&v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "all", UID: "u-all", Generation: 3},
		Spec:       v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-1", "sg-2"}}},
	}).Build()
	d := admission.NewDecoder(s)
	return map[string]http.Handler{
		PathMutatePod:    &webhook.Admission{Handler: &MutatePod{Policies: c, Live: c, Decoder: d, Log: slog.New(slog.DiscardHandler)}},
		PathValidatePod:  &webhook.Admission{Handler: &ValidatePod{Policies: c, Live: c, Decoder: d}},
		PathValidateNode: &webhook.Admission{Handler: &ValidateNode{}},
		PathValidateBind: &webhook.Admission{Handler: &ValidateBinding{}},
	}
}

func review(op, user, object, old string) []byte {
	if object == "" {
		object = "null"
	}
	if old == "" {
		old = "null"
	}
	return fmt.Appendf(nil, `{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","kind":{"group":"","version":"v1","kind":"Pod"},
"resource":{"group":"","version":"v1","resource":"pods"},"namespace":"ns","operation":%q,"userInfo":{"username":%q},"object":%s,"oldObject":%s}}`, op, user, object, old)
}

func ask(t testing.TB, h http.Handler, body []byte) *admissionv1.AdmissionResponse {
	t.Helper()
	w, req := httptest.NewRecorder(), httptest.NewRequest(http.MethodPost, "/", bytes.NewReader(body))
	req.Header.Set("Content-Type", "application/json")
	h.ServeHTTP(w, req)
	var got admissionv1.AdmissionReview
	if err := json.Unmarshal(w.Body.Bytes(), &got); err != nil || got.Response == nil {
		t.Fatalf("answer %d %q: %v", w.Code, w.Body, err)
	}
	return got.Response
}

// A newer API server sends fields that this program does not know: the patch may name nothing but what it changes.
func TestThePatchTouchesNothingElse(t *testing.T) {
	h := hooks(t)[PathMutatePod]
	r := ask(t, h, review("CREATE", "me", `{"metadata":{"name":"p","newField":{"a":9007199254740993}},"spec":{"newList":[1],"containers":[{"name":"c","newField":true},{"name":"d"}]}}`, ""))
	var ops []struct{ Op, Path string }
	if err := json.Unmarshal(r.Patch, &ops); err != nil || !r.Allowed || len(ops) != 2 {
		t.Fatalf("%+v: %v, %s", r, err, r.Patch)
	}
	for _, o := range ops {
		if o.Op != "add" || o.Path != "/spec/containers/0/resources" && o.Path != "/metadata/annotations" {
			t.Errorf("changes %s", o.Path)
		}
	}
	for _, body := range []string{`{"spec":{"hostNetwork":true,"containers":[{}]}}`,
		`{"metadata":{"annotations":{"branchline.dev/security-group-policies":"[{\"uid\":\"u-all\",\"generation\":3}]"}},"spec":{"containers":[{"resources":{"limits":{"vpc.amazonaws.com/pod-eni":"1"},"requests":{"vpc.amazonaws.com/pod-eni":"1"}}}]}}`} {
		if r := ask(t, h, review("CREATE", "me", body, "")); !r.Allowed || len(r.Patch) > 0 {
			t.Errorf("%s: %+v", body, r)
		}
	}
	r = ask(t, h, review("CREATE", "me", `{"metadata":{"labels":{"eks.amazonaws.com/fargate-profile":"f"}},"spec":{"containers":[{}]}}`, ""))
	if !strings.Contains(string(r.Patch), `"sg-1,sg-2"`) || strings.Contains(string(r.Patch), "resources") {
		t.Errorf("on Fargate: %s", r.Patch)
	}
}

func TestTheAgentChangesNothingOnANodeButItsLabels(t *testing.T) {
	h := hooks(t)[PathValidateNode]
	const old = `{"metadata":{"name":"n","resourceVersion":"1","labels":{"a":"b"}},"spec":{"providerID":"x"},"status":{}}`
	for object, allowed := range map[string]bool{
		`{"metadata":{"name":"n","resourceVersion":"2","generation":3,"managedFields":[{}],"labels":{"a":"b","vpc.amazonaws.com/has-trunk-attached":"true"}},"spec":{"providerID":"x"},"status":{}}`: true,
		`{"metadata":{"name":"n","labels":{"a":"b","vpc.amazonaws.com/eniConfig":"c"}},"spec":{"providerID":"x"},"status":{}}`:                                                                       true,
		`{"metadata":{"name":"n","labels":{"a":"c"}},"spec":{"providerID":"x"},"status":{}}`:                                                                                                         false,
		`{"metadata":{"name":"n"},"spec":{"providerID":"x"},"status":{}}`:                                                                                                                            false,
		`{"metadata":{"name":"n","labels":{"a":"b"},"annotations":{"x":"y"}},"spec":{"providerID":"x"},"status":{}}`:                                                                                 false,
		`{"metadata":{"name":"n","labels":{"a":"b"}},"spec":{"providerID":"x","taints":[]},"status":{}}`:                                                                                             false,
		`{"metadata":{"name":"n","labels":{"a":"b"}},"spec":{"providerID":"x"},"status":{},"newField":1}`:                                                                                            false,
	} {
		if r := ask(t, h, review("UPDATE", AgentUser, object, old)); r.Allowed != allowed {
			t.Errorf("%s: allowed %v", object, r.Allowed)
		}
		if r := ask(t, h, review("UPDATE", "system:admin", object, old)); !r.Allowed {
			t.Errorf("others are held to the agent's labels: %s", object)
		}
	}
	label := `{"metadata":{"labels":{"vpc.amazonaws.com/has-trunk-attached":"true"}}}`
	if r := ask(t, h, review("UPDATE", AgentUser, label, `{"metadata":{}}`)); !r.Allowed {
		t.Error("the first label of a node was refused")
	}
	if r := ask(t, h, review("UPDATE", AgentUser, `{"metadata":{}}`, label)); !r.Allowed {
		t.Error("taking the last label away was refused")
	}
}

// The stamp is the webhook's alone: whatever a new pod comes with is overwritten or taken away, what got past that is denied,
// and nobody changes it later.
func TestP2NobodyButTheWebhookStampsAPod(t *testing.T) {
	all := hooks(t)
	const right = `[{\"uid\":\"u-all\",\"generation\":3}]`
	pod := func(stamp, rest string) string {
		return fmt.Sprintf(`{"metadata":{"annotations":{"a":"b","branchline.dev/security-group-policies":"%s"}%s},"spec":{"containers":[{"name":"c"}]}}`, stamp, rest)
	}
	fargate := `,"labels":{"eks.amazonaws.com/fargate-profile":"f"}`
	for _, stamp := range []string{"[]", "x", `[{\"uid\":\"u-all\",\"generation\":2}]`} {
		if r := ask(t, all[PathMutatePod], review("CREATE", "me", pod(stamp, ""), "")); !r.Allowed || !strings.Contains(string(r.Patch), "u-all") || strings.Contains(string(r.Patch), `"/metadata/annotations/a"`) {
			t.Errorf("%s was left: %s", stamp, r.Patch)
		}
		if r := ask(t, all[PathValidatePod], review("CREATE", "system:admin", pod(stamp, ""), "")); r.Allowed {
			t.Errorf("%s was let through", stamp)
		}
		if r := ask(t, all[PathValidatePod], review("UPDATE", "system:admin", pod(stamp, ""), pod(right, ""))); r.Allowed {
			t.Errorf("%s was set later", stamp)
		}
		elsewhere := strings.Replace(string(review("CREATE", "me", pod(stamp, ""), "")), `"namespace":"ns"`, `"namespace":"other"`, 1)
		if r := ask(t, all[PathMutatePod], []byte(elsewhere)); !strings.Contains(string(r.Patch), `"remove"`) || strings.Contains(string(r.Patch), "resources") {
			t.Errorf("%s was left where there is no policy: %s", stamp, r.Patch)
		}
		if r := ask(t, all[PathValidatePod], []byte(elsewhere)); r.Allowed {
			t.Errorf("%s was let through where there is no policy", stamp)
		}
		if r := ask(t, all[PathMutatePod], review("CREATE", "me", pod(stamp, fargate), "")); !strings.Contains(string(r.Patch), `"remove"`) {
			t.Errorf("%s was left on Fargate: %s", stamp, r.Patch)
		}
	}
	if r := ask(t, all[PathValidatePod], review("CREATE", "me", pod(right, ""), "")); !r.Allowed {
		t.Errorf("the webhook's own stamp was denied: %+v", r.Result)
	}
	if r := ask(t, all[PathValidatePod], review("CREATE", "me", pod(right, fargate), "")); r.Allowed {
		t.Error("a stamp got past with Fargate's label")
	}
	if r := ask(t, all[PathValidatePod], review("UPDATE", "me", `{"metadata":{},"spec":{"containers":[{}]}}`, pod(right, ""))); r.Allowed {
		t.Error("a stamp was taken away")
	}
}

// What a binding carries, the API server puts on the pod, past the webhook that guards updates of it.
func TestABindingPutsNoAnnotationOfTheControlPlanesOnAPod(t *testing.T) {
	h := hooks(t)[PathValidateBind]
	for object, allowed := range map[string]bool{
		`{"metadata":{"name":"p"},"target":{"kind":"Node","name":"n"}}`:                true,
		`{"metadata":{"name":"p","annotations":{"a":"b"}}}`:                            true,
		`{"metadata":{"annotations":{"a":"b","vpc.amazonaws.com/pod-eni":""}}}`:        false,
		`{"metadata":{"annotations":{"branchline.dev/security-group-policies":"[]"}}}`: false,
		`{"metadata":{"annotations":{"fargate.amazonaws.com/pod-sg":"sg-1"}}}`:         false,
		`{"metadata":{"annotations":[]}}`:                                              false,
		`1`:                                                                            false,
	} {
		for _, user := range []string{"system:kube-scheduler", "eks:vpc-resource-controller"} {
			if r := ask(t, h, review("CREATE", user, object, "")); r.Allowed != allowed {
				t.Errorf("%s by %s: allowed %v", object, user, r.Allowed)
			}
		}
	}
}

// Whatever the API server, or somebody who reaches the port, sends: an answer, and never a panic.
func FuzzAdmissionReview(f *testing.F) {
	pod := `{"metadata":{"name":"p","annotations":{"vpc.amazonaws.com/pod-eni":"[]"}},"spec":{"containers":[{"name":"c","resources":{"limits":null}}]}}`
	f.Add([]byte(pod), []byte(`{"metadata":null}`), "CREATE", false)
	f.Add([]byte(pod), []byte(pod), "UPDATE", false)
	f.Add([]byte(`{"metadata":{"labels":{"eks.amazonaws.com/fargate-profile":""},"annotations":null},"spec":{"containers":[null]}}`), []byte(`[]`), "UPDATE", false)
	f.Add([]byte(`{"metadata":[],"spec":{"containers":{"0":1}}}`), []byte(`1`), "DELETE", false)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":null}`), []byte(``), "", true)
	f.Add([]byte(`{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"object":{"spec":{"containers":[{}]}}}}`), []byte(``), "", true)
	all := hooks(f)
	f.Fuzz(func(t *testing.T, object, old []byte, op string, whole bool) {
		body := object
		if !whole {
			body = review(op, AgentUser, string(object), string(old))
		}
		for path, h := range all {
			r := ask(t, h, body)
			if len(r.Patch) > 0 && path != PathMutatePod {
				t.Fatalf("%s answers with a patch", path)
			}
			if !r.Allowed && (r.Result == nil || r.Result.Message == "") {
				t.Fatalf("%s refuses and gives no reason: %+v", path, r)
			}
		}
	})
}
