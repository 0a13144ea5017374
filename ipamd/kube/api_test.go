package kube

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
)

// asked is the last request that an API server got.
type asked struct {
	line, accept, contentType, body string
}

// answering is the API of a server that gives one answer.
func answering(t *testing.T, status int, contentType string, body []byte) (API, *asked) {
	t.Helper()
	a := &asked{}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		*a = asked{r.Method + " " + r.URL.RequestURI(), r.Header.Get("Accept"), r.Header.Get("Content-Type"), string(b)}
		w.Header().Set("Content-Type", contentType)
		w.WriteHeader(status)
		_, _ = w.Write(body)
	}))
	t.Cleanup(srv.Close)
	api, err := Connect(&rest.Config{Host: srv.URL})
	if err != nil {
		t.Fatal(err)
	}
	return api, a
}

func asJSON(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func named1(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }

func TestEachQuestionAndChangeGoesToWhereTheAPIServerHasTheObject(t *testing.T) {
	ctx := t.Context()
	one := func(name string) types.NamespacedName { return types.NamespacedName{Name: name} }
	of := func(namespace, name string) types.NamespacedName {
		return types.NamespacedName{Namespace: namespace, Name: name}
	}
	account := &metav1.PartialObjectMetadata{}
	account.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ServiceAccount"))
	for want, do := range map[string]func(API) error{
		"GET /api/v1/namespaces/n/pods/p":                  func(a API) error { return a.Get(ctx, of("n", "p"), &corev1.Pod{}) },
		"GET /api/v1/namespaces/n/serviceaccounts/default": func(a API) error { return a.Get(ctx, of("n", "default"), account) },
		"GET /apis/vpcresources.k8s.aws/v1alpha1/cninodes/node": func(a API) error {
			return a.Get(ctx, one("node"), &cninodev1.CNINode{})
		},
		"GET /apis/branchline.dev/v1alpha1/branchledgers/i-1": func(a API) error {
			return a.Get(ctx, one("i-1"), &ledgerv1.BranchLedger{})
		},
		"GET /api/v1/pods?fieldSelector=spec.nodeName%3Dnode&resourceVersion=0": func(a API) error {
			return a.List(ctx, "", &corev1.PodList{}, metav1.ListOptions{FieldSelector: "spec.nodeName=node", ResourceVersion: "0"})
		},
		"GET /api/v1/nodes": func(a API) error { return a.List(ctx, "", &corev1.NodeList{}, metav1.ListOptions{}) },
		"GET /apis/crd.k8s.amazonaws.com/v1alpha1/eniconfigs": func(a API) error {
			return a.List(ctx, "", &eniconfigv1.ENIConfigList{}, metav1.ListOptions{})
		},
		"GET /apis/vpcresources.k8s.aws/v1beta1/namespaces/n/securitygrouppolicies": func(a API) error {
			return a.List(ctx, "n", &v1beta1.SecurityGroupPolicyList{}, metav1.ListOptions{})
		},
		"POST /api/v1/namespaces/n/events": func(a API) error {
			return a.Create(ctx, &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "e"}})
		},
		"PATCH /api/v1/nodes/node": func(a API) error { return a.Patch(ctx, &corev1.Node{ObjectMeta: named1("node")}, []byte(`{}`)) },
		"PATCH /apis/branchline.dev/v1alpha1/branchledgers/i-1/status": func(a API) error {
			return a.Patch(ctx, &ledgerv1.BranchLedger{ObjectMeta: named1("i-1")}, []byte(`{}`), "status")
		},
	} {
		api, got := answering(t, http.StatusOK, runtime.ContentTypeJSON, []byte(`{}`))
		// That the answer is no object of that kind is another matter.
		_ = do(api)
		if got.line != want {
			t.Errorf("asked %q, want %q", got.line, want)
		}
		if core := strings.Contains(want, " /api/"); core != strings.HasPrefix(got.accept, runtime.ContentTypeProtobuf) {
			t.Errorf("%s: accepts %q", want, got.accept)
		}
		if verb, _, _ := strings.Cut(want, " "); verb == "PATCH" && (got.contentType != string(types.MergePatchType) || got.body != "{}") {
			t.Errorf("%s: %q of type %q", want, got.body, got.contentType)
		}
	}
}

func TestObjectsAreReadInBothEncodings(t *testing.T) {
	pod := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "p", UID: "u"}}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	binary, err := runtime.Encode(protobuf.NewSerializer(scheme, scheme), pod)
	if err != nil {
		t.Fatal(err)
	}
	for contentType, body := range map[string][]byte{runtime.ContentTypeJSON: asJSON(t, pod), runtime.ContentTypeProtobuf: binary} {
		api, _ := answering(t, http.StatusOK, contentType, body)
		var got corev1.Pod
		if err := api.Get(t.Context(), types.NamespacedName{Namespace: "n", Name: "p"}, &got); err != nil || got.UID != "u" {
			t.Errorf("%s: %+v, %v", contentType, got, err)
		}
	}
}

func TestOfAServiceAccountNoMoreThanItsMetadataIsAskedFor(t *testing.T) {
	answer := &metav1.PartialObjectMetadata{TypeMeta: metav1.TypeMeta{APIVersion: "meta.k8s.io/v1", Kind: "PartialObjectMetadata"}}
	answer.Labels = map[string]string{"a": "b"}
	api, got := answering(t, http.StatusOK, runtime.ContentTypeJSON, asJSON(t, answer))
	labels, err := (&Client{opt: Options{API: api}}).AccountLabels(t.Context(), "n", "s")
	if err != nil || labels["a"] != "b" {
		t.Errorf("%v, %v", labels, err)
	}
	if !strings.Contains(got.accept, "as=PartialObjectMetadata") {
		t.Errorf("accepts %q", got.accept)
	}
}

func TestAnEventIsSentAsWhatItIs(t *testing.T) {
	api, got := answering(t, http.StatusCreated, runtime.ContentTypeJSON, []byte(`{}`))
	if err := api.Create(t.Context(), &corev1.Event{ObjectMeta: metav1.ObjectMeta{Namespace: "n", Name: "e"}, Reason: "Because"}); err != nil {
		t.Fatal(err)
	}
	scheme, err := Scheme()
	if err != nil {
		t.Fatal(err)
	}
	o, kind, err := protobuf.NewSerializer(scheme, scheme).Decode([]byte(got.body), nil, nil)
	if err != nil {
		t.Fatalf("%q: %v", got.body, err)
	}
	if e, ok := o.(*corev1.Event); !ok || e.Reason != "Because" || kind.String() != "/v1, Kind=Event" {
		t.Errorf("%v: %+v", kind, o)
	}
}

func TestARefusalIsTheAPIServersOwn(t *testing.T) {
	no := apierrors.NewConflict(cninodev1.GroupVersion.WithResource("cninodes").GroupResource(), "node", io.EOF)
	no.ErrStatus.TypeMeta = metav1.TypeMeta{APIVersion: "v1", Kind: "Status"}
	api, _ := answering(t, http.StatusConflict, runtime.ContentTypeJSON, asJSON(t, no.ErrStatus))
	if err := api.Patch(t.Context(), &cninodev1.CNINode{ObjectMeta: named1("node")}, []byte(`{}`)); !apierrors.IsConflict(err) {
		t.Errorf("%v", err)
	}
	api, _ = answering(t, http.StatusNotFound, "text/plain", []byte("404 page not found\n")) // no such resource
	if err := api.List(t.Context(), "", &ledgerv1.BranchLedgerList{}, metav1.ListOptions{}); !unknownResource(err) {
		t.Errorf("%v", err)
	}
	if err := api.Create(t.Context(), &corev1.Secret{}); err == nil || !strings.Contains(err.Error(), "v1.Secret") {
		t.Errorf("what the agent has no business with: %v", err)
	}
}

func TestAWatchTellsWhatComesAndGoes(t *testing.T) {
	var body []byte
	for _, kind := range []watch.EventType{watch.Added, watch.Deleted} {
		body = append(body, asJSON(t, map[string]any{"type": kind, "object": &cninodev1.CNINode{
			TypeMeta: metav1.TypeMeta{APIVersion: cninodev1.GroupVersion.String(), Kind: "CNINode"}, ObjectMeta: named1("node"),
		}})...)
	}
	api, got := answering(t, http.StatusOK, runtime.ContentTypeJSON, body)
	w, err := api.Watch(context.Background(), &cninodev1.CNINodeList{}, metav1.ListOptions{FieldSelector: "metadata.name=node", AllowWatchBookmarks: true})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()
	for _, kind := range []watch.EventType{watch.Added, watch.Deleted} {
		if e := <-w.ResultChan(); e.Type != kind || e.Object.(*cninodev1.CNINode).Name != "node" {
			t.Errorf("%+v, want %s", e, kind)
		}
	}
	if want := "GET /apis/vpcresources.k8s.aws/v1alpha1/cninodes?allowWatchBookmarks=true&fieldSelector=metadata.name%3Dnode&watch=true"; got.line != want {
		t.Errorf("asked %q, want %q", got.line, want)
	}
}
