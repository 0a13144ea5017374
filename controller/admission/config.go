package admission

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/branchline-cni/branchline/policy"
)

// Names of the webhook configurations: ours, and the hosted control plane's.
const (
	MutatingName   = "branchline-mutating-webhook"
	ValidatingName = "branchline-validating-webhook"

	HostedMutatingName   = "vpc-resource-mutating-webhook"
	HostedValidatingName = "vpc-resource-validating-webhook"
)

// Paths of the webhooks.
const (
	PathMutatePod    = "/mutate-v1-pod"
	PathValidatePod  = "/validate-v1-pod"
	PathValidateNode = "/validate-v1-node"
)

// ErrHosted: the cluster has the hosted control plane's webhooks. Two controllers would fight over every node.
var ErrHosted = errors.New("the hosted control plane manages security groups for pods in this cluster")

// Hosted returns ErrHosted, with the object's name, where one of the hosted configurations exists.
func Hosted(ctx context.Context, read client.Reader) error {
	for name, o := range map[string]client.Object{
		HostedMutatingName:   &admissionregistrationv1.MutatingWebhookConfiguration{},
		HostedValidatingName: &admissionregistrationv1.ValidatingWebhookConfiguration{},
	} {
		err := read.Get(ctx, client.ObjectKey{Name: name}, o)
		if err == nil {
			return fmt.Errorf("%w: the webhook configuration %s exists; this controller stands aside: remove its Deployment, or, on a cluster that is not hosted, that configuration", ErrHosted, name)
		}
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("look for the webhook configuration %s: %w", name, err)
		}
	}
	return nil
}

// Configs keeps our webhook configurations as they should be, whoever changes them.
type Configs struct {
	Client client.Client
	Live   client.Reader
	// URL is the base address that the API server calls, or Service the namespace/name to call instead.
	URL, Service string
	CA           []byte
	Log          *slog.Logger
	// Stop is called when the hosted control plane takes over.
	Stop func(error)
}

// Reconcile implements reconcile.Reconciler. The request only says that some webhook configuration changed.
func (r *Configs) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	if err := Hosted(ctx, r.Live); err != nil {
		if errors.Is(err, ErrHosted) {
			r.Log.ErrorContext(ctx, "standing aside", "error", err)
			err := errors.Join(
				client.IgnoreNotFound(r.Client.Delete(ctx, &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName}})),
				client.IgnoreNotFound(r.Client.Delete(ctx, &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ValidatingName}})))
			if err == nil {
				r.Stop(ErrHosted)
			}
			return ctrl.Result{}, err
		}
		return ctrl.Result{}, err
	}
	m := &admissionregistrationv1.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: MutatingName}}
	if err := r.ensure(ctx, m, func() error { m.Webhooks = []admissionregistrationv1.MutatingWebhook{r.mutating()}; return nil }); err != nil {
		return ctrl.Result{}, err
	}
	v := &admissionregistrationv1.ValidatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: ValidatingName}}
	return ctrl.Result{}, r.ensure(ctx, v, func() error { v.Webhooks = r.validating(); return nil })
}

func (r *Configs) ensure(ctx context.Context, o client.Object, set controllerutil.MutateFn) error {
	did, err := controllerutil.CreateOrUpdate(ctx, r.Client, o, set)
	if err != nil {
		return fmt.Errorf("write webhook configuration %s: %w", o.GetName(), err)
	}
	if did != controllerutil.OperationResultNone {
		r.Log.InfoContext(ctx, "webhook configuration written", "name", o.GetName(), "operation", did)
	}
	return nil
}

func (r *Configs) client(path string) admissionregistrationv1.WebhookClientConfig {
	c := admissionregistrationv1.WebhookClientConfig{CABundle: r.CA}
	if namespace, name, ok := strings.Cut(r.Service, "/"); ok {
		c.Service = &admissionregistrationv1.ServiceReference{Namespace: namespace, Name: name, Path: &path, Port: ptr.To[int32](443)}
		return c
	}
	c.URL = ptr.To(strings.TrimSuffix(r.URL, "/") + path)
	return c
}

func rule(resource string, ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
	return []admissionregistrationv1.RuleWithOperations{{Operations: ops, Rule: admissionregistrationv1.Rule{
		APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{resource}, Scope: ptr.To(admissionregistrationv1.AllScopes),
	}}}
}

// Every field that the API server would fill in is set, so that a configuration that is as it should be compares equal.
func (r *Configs) mutating() admissionregistrationv1.MutatingWebhook {
	return admissionregistrationv1.MutatingWebhook{
		Name: "mpod.vpc.k8s.aws", ClientConfig: r.client(PathMutatePod), Rules: rule("pods", admissionregistrationv1.Create),
		FailurePolicy: ptr.To(admissionregistrationv1.Ignore), MatchPolicy: ptr.To(admissionregistrationv1.Equivalent),
		NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
		SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), TimeoutSeconds: ptr.To[int32](5),
		AdmissionReviewVersions: []string{"v1"}, ReinvocationPolicy: ptr.To(admissionregistrationv1.IfNeededReinvocationPolicy),
		MatchConditions: []admissionregistrationv1.MatchCondition{{
			Name: "not-on-the-hosts-network", Expression: "!has(object.spec.hostNetwork) || !object.spec.hostNetwork",
		}},
	}
}

func (r *Configs) validating() []admissionregistrationv1.ValidatingWebhook {
	hook := func(name, path, resource string, ops []admissionregistrationv1.OperationType, condition admissionregistrationv1.MatchCondition) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name: name, ClientConfig: r.client(path), Rules: rule(resource, ops...),
			FailurePolicy: ptr.To(admissionregistrationv1.Fail), MatchPolicy: ptr.To(admissionregistrationv1.Equivalent),
			NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
			SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), TimeoutSeconds: ptr.To[int32](10),
			AdmissionReviewVersions: []string{"v1"}, MatchConditions: []admissionregistrationv1.MatchCondition{condition},
		}
	}
	update := admissionregistrationv1.Update
	return []admissionregistrationv1.ValidatingWebhook{
		hook("vpod.vpc.k8s.aws", PathValidatePod, "pods", []admissionregistrationv1.OperationType{admissionregistrationv1.Create, update},
			admissionregistrationv1.MatchCondition{Name: "touches-a-guarded-annotation", Expression: touches()}),
		hook("vnode.vpc.k8s.aws", PathValidateNode, "nodes", []admissionregistrationv1.OperationType{update},
			admissionregistrationv1.MatchCondition{Name: "comes-from-the-agent", Expression: fmt.Sprintf("request.userInfo.username == '%s'", AgentUser)}),
	}
}

// touches is a CEL expression: the request creates a pod with the annotation of a branch ENI, or changes one of the two
// guarded annotations of a pod.
func touches() string {
	value := func(object, key string) string {
		return fmt.Sprintf("(has(%[1]s.metadata.annotations) && '%[2]s' in %[1]s.metadata.annotations ? 'set:' + %[1]s.metadata.annotations['%[2]s'] : '')", object, key)
	}
	branch, fargate := policy.Resource, FargateAnnotation
	return fmt.Sprintf("oldObject == null ? %s != '' : (%s != %s || %s != %s)",
		value("object", branch),
		value("oldObject", branch), value("object", branch), value("oldObject", fargate), value("object", fargate))
}
