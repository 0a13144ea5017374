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

// hooks are the three webhooks as the API server reaches them, with one policy that selects every pod of namespace ns.
func hooks(t testing.TB) map[string]http.Handler {
	t.Helper()
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, v1beta1.AddToScheme} {
		if err := add(s); err != nil {
			t.Fatal(err)
		}
	}
	c := fake.NewClientBuilder().WithScheme(s).WithObjects(&v1beta1.SecurityGroupPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "all"},
		Spec:       v1beta1.SecurityGroupPolicySpec{PodSelector: &metav1.LabelSelector{}, SecurityGroups: v1beta1.GroupIDs{Groups: []string{"sg-1", "sg-2"}}},
	}).Build()
	d := admission.NewDecoder(s)
	return map[string]http.Handler{
		PathMutatePod:    &webhook.Admission{Handler: &MutatePod{Policies: c, Live: c, Decoder: d, Log: slog.New(slog.DiscardHandler)}},
		PathValidatePod:  &webhook.Admission{Handler: &ValidatePod{Decoder: d}},
		PathValidateNode: &webhook.Admission{Handler: &ValidateNode{}},
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
	if err := json.Unmarshal(r.Patch, &ops); err != nil || !r.Allowed || len(ops) != 1 || ops[0].Op != "add" || ops[0].Path != "/spec/containers/0/resources" {
		t.Fatalf("%+v: %v, %s", r, err, r.Patch)
	}
	for _, body := range []string{`{"spec":{"hostNetwork":true,"containers":[{}]}}`, `{"spec":{}}`,
		`{"spec":{"containers":[{"resources":{"limits":{"vpc.amazonaws.com/pod-eni":"1"},"requests":{"vpc.amazonaws.com/pod-eni":"1"}}}]}}`} {
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
