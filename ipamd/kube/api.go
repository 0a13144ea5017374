package kube

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"

	eniconfigv1 "github.com/branchline-cni/branchline/api/eniconfig/v1alpha1"
	ledgerv1 "github.com/branchline-cni/branchline/api/ledger/v1alpha1"
	cninodev1 "github.com/branchline-cni/branchline/api/v1alpha1"
	"github.com/branchline-cni/branchline/api/v1beta1"
)

// API is what a Client asks of the API server. The type of an object or list says which resource is meant; of what the
// server makes of a change, nothing is read.
type API interface {
	Get(ctx context.Context, key types.NamespacedName, into Object) error
	// List and Watch are about all namespaces where none is named.
	List(ctx context.Context, namespace string, into runtime.Object, o metav1.ListOptions) error
	Watch(ctx context.Context, list runtime.Object, o metav1.ListOptions) (watch.Interface, error)
	Create(ctx context.Context, o Object) error
	// Patch is a JSON merge patch (RFC 7386) of what has that type, namespace and name, or of a subresource of it.
	Patch(ctx context.Context, o Object, merge []byte, subresource ...string) error
}

// Object is one that the API server has.
type Object interface {
	runtime.Object
	metav1.Object
}

// Scheme holds the types that the agent speaks of, and none besides: what the core group has in all is memory of every node.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	s.AddKnownTypes(corev1.SchemeGroupVersion,
		&corev1.Pod{}, &corev1.PodList{}, &corev1.Node{}, &corev1.NodeList{}, &corev1.Event{}, &corev1.EventList{})
	metav1.AddToGroupVersion(s, corev1.SchemeGroupVersion)
	return s, errors.Join(cninodev1.AddToScheme(s), ledgerv1.AddToScheme(s), v1beta1.AddToScheme(s), eniconfigv1.AddToScheme(s))
}

// place is where the API server has the objects of one kind.
type place struct {
	schema.GroupVersionResource
	namespaced bool
}

func core(plural string, namespaced bool) place {
	return place{corev1.SchemeGroupVersion.WithResource(plural), namespaced}
}

// known are all resources that the agent speaks of. They are known beforehand, so that an API server that is away doesn't
// keep the agent from starting.
var known = map[string]place{
	"pods":                  core("pods", true),
	"events":                core("events", true),
	"serviceaccounts":       core("serviceaccounts", true),
	"nodes":                 core("nodes", false),
	"cninodes":              {cninodev1.GroupVersion.WithResource("cninodes"), false},
	"eniconfigs":            {eniconfigv1.GroupVersion.WithResource("eniconfigs"), false},
	"branchledgers":         {ledgerv1.GroupVersion.WithResource("branchledgers"), false},
	"securitygrouppolicies": {v1beta1.GroupVersion.WithResource("securitygrouppolicies"), true},
}

func pluralOf(o runtime.Object) (string, error) {
	switch o := o.(type) {
	case *corev1.Pod, *corev1.PodList:
		return "pods", nil
	case *corev1.Event:
		return "events", nil
	case *corev1.Node, *corev1.NodeList:
		return "nodes", nil
	case *cninodev1.CNINode, *cninodev1.CNINodeList:
		return "cninodes", nil
	case *eniconfigv1.ENIConfig, *eniconfigv1.ENIConfigList:
		return "eniconfigs", nil
	case *ledgerv1.BranchLedger, *ledgerv1.BranchLedgerList:
		return "branchledgers", nil
	case *v1beta1.SecurityGroupPolicy, *v1beta1.SecurityGroupPolicyList:
		return "securitygrouppolicies", nil
	case *metav1.PartialObjectMetadata:
		if o.Kind == "ServiceAccount" {
			return "serviceaccounts", nil
		}
	}
	return "", fmt.Errorf("%T is of no resource that the agent knows", o)
}

// server is the API of an API server. A client of controller-runtime or a clientset would do the same, and bring the types of
// all groups: a third of the agent's executable, and most of its pages.
type server map[string]rest.Interface // by the resource's plural

// Connect makes the client of the API server's API that Options takes. It sends nothing.
func Connect(cfg *rest.Config) (API, error) {
	scheme, err := Scheme()
	if err != nil {
		return nil, err
	}
	if err := metav1.AddMetaToScheme(scheme); err != nil { // an object of which only the metadata is wanted
		return nil, err
	}
	codecs := serializer.NewCodecFactory(scheme).WithoutConversion()
	connections, err := rest.HTTPClientFor(cfg)
	if err != nil {
		return nil, err
	}
	s := server{}
	for plural, r := range known { // each with a rate limit of its own: events must not hold up a trunk's label
		c := rest.CopyConfig(cfg)
		gv := r.GroupVersion()
		c.GroupVersion, c.NegotiatedSerializer, c.WarningHandler = &gv, codecs, rest.NoWarnings{}
		c.APIPath = "/apis"
		if r.Group == "" {
			c.APIPath = "/api"
			c.ContentType, c.AcceptContentTypes = runtime.ContentTypeProtobuf, runtime.ContentTypeProtobuf+","+runtime.ContentTypeJSON
		}
		if s[plural], err = rest.RESTClientForConfigAndClient(c, connections); err != nil {
			return nil, fmt.Errorf("for %s: %w", r.GroupResource(), err)
		}
	}
	return s, nil
}

// request begins one about the resource of o.
func (s server) request(verb string, o runtime.Object, namespace string) (*rest.Request, error) {
	plural, err := pluralOf(o)
	if err != nil {
		return nil, err
	}
	return s[plural].Verb(verb).NamespaceIfScoped(namespace, known[plural].namespaced).Resource(plural), nil
}

// onlyMetadata has the API server send no more of an object than its metadata (Kubernetes API concepts, "Alternate
// representations of resources").
const onlyMetadata = runtime.ContentTypeProtobuf + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1," + runtime.ContentTypeJSON + ";as=PartialObjectMetadata;g=meta.k8s.io;v=v1"

func (s server) Get(ctx context.Context, key types.NamespacedName, into Object) error {
	r, err := s.request("GET", into, key.Namespace)
	if err != nil {
		return err
	}
	if _, partial := into.(*metav1.PartialObjectMetadata); partial {
		r.SetHeader("Accept", onlyMetadata)
	}
	return r.Name(key.Name).Do(ctx).Into(into)
}

func (s server) List(ctx context.Context, namespace string, into runtime.Object, o metav1.ListOptions) error {
	r, err := s.request("GET", into, namespace)
	if err != nil {
		return err
	}
	return r.SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1.SchemeGroupVersion).Do(ctx).Into(into)
}

func (s server) Watch(ctx context.Context, list runtime.Object, o metav1.ListOptions) (watch.Interface, error) {
	r, err := s.request("GET", list, "")
	if err != nil {
		return nil, err
	}
	o.Watch = true
	return r.SpecificallyVersionedParams(&o, metav1.ParameterCodec, metav1.SchemeGroupVersion).Watch(ctx)
}

func (s server) Create(ctx context.Context, o Object) error {
	r, err := s.request("POST", o, o.GetNamespace())
	if err != nil {
		return err
	}
	return r.Body(o).Do(ctx).Error()
}

func (s server) Patch(ctx context.Context, o Object, merge []byte, subresource ...string) error {
	r, err := s.request("PATCH", o, o.GetNamespace())
	if err != nil {
		return err
	}
	return r.Name(o.GetName()).SubResource(subresource...).SetHeader("Content-Type", string(types.MergePatchType)).Body(merge).Do(ctx).Error()
}
