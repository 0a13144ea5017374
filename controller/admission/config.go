package admission

import (
	"context"
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
	PathValidateBind = "/validate-v1-binding"
)

// Configs keeps our webhook configurations as they should be, whoever changes them.
type Configs struct {
	Client client.Client
	Live   client.Reader
	// URL is the base address that the API server calls, or Service the namespace/name to call instead.
	URL, Service string
	CA           []byte
	Log          *slog.Logger
}

// Reconcile implements reconcile.Reconciler. The request only says that some webhook configuration changed.
func (r *Configs) Reconcile(ctx context.Context, _ ctrl.Request) (ctrl.Result, error) {
	// StandAside has these taken away where the hosted ones exist.
	if err := Hosted(ctx, r.Live); err != nil {
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

func rule(resources []string, ops ...admissionregistrationv1.OperationType) []admissionregistrationv1.RuleWithOperations {
	return []admissionregistrationv1.RuleWithOperations{{Operations: ops, Rule: admissionregistrationv1.Rule{
		APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: resources, Scope: ptr.To(admissionregistrationv1.AllScopes),
	}}}
}

// Every field that the API server would fill in is set, so that a configuration that is as it should be compares equal.
func (r *Configs) mutating() admissionregistrationv1.MutatingWebhook {
	return admissionregistrationv1.MutatingWebhook{
		Name: "mpod.vpc.k8s.aws", ClientConfig: r.client(PathMutatePod), Rules: rule([]string{"pods"}, admissionregistrationv1.Create),
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
	hook := func(name, path string, resources []string, ops []admissionregistrationv1.OperationType, condition admissionregistrationv1.MatchCondition) admissionregistrationv1.ValidatingWebhook {
		return admissionregistrationv1.ValidatingWebhook{
			Name: name, ClientConfig: r.client(path), Rules: rule(resources, ops...),
			FailurePolicy: ptr.To(admissionregistrationv1.Fail), MatchPolicy: ptr.To(admissionregistrationv1.Equivalent),
			NamespaceSelector: &metav1.LabelSelector{}, ObjectSelector: &metav1.LabelSelector{},
			SideEffects: ptr.To(admissionregistrationv1.SideEffectClassNone), TimeoutSeconds: ptr.To[int32](10),
			AdmissionReviewVersions: []string{"v1"}, MatchConditions: []admissionregistrationv1.MatchCondition{condition},
		}
	}
	create, update := admissionregistrationv1.Create, admissionregistrationv1.Update
	// pods/status is there because an update of the status can change annotations too. A binding's annotations are put on its
	// pod; those that a scheduler sends have none, so that scheduling does not depend on the webhook.
	return []admissionregistrationv1.ValidatingWebhook{
		hook("vpod.vpc.k8s.aws", PathValidatePod, []string{"pods", "pods/status"}, []admissionregistrationv1.OperationType{create, update},
			admissionregistrationv1.MatchCondition{Name: "touches-a-guarded-annotation", Expression: touches()}),
		hook("vbinding.branchline.dev", PathValidateBind, []string{"pods/binding", "bindings"}, []admissionregistrationv1.OperationType{create},
			admissionregistrationv1.MatchCondition{Name: "carries-a-guarded-annotation", Expression: carries()}),
		hook("vnode.vpc.k8s.aws", PathValidateNode, []string{"nodes"}, []admissionregistrationv1.OperationType{update},
			admissionregistrationv1.MatchCondition{Name: "comes-from-the-agent", Expression: fmt.Sprintf("request.userInfo.username == '%s'", AgentUser)}),
	}
}

// guarded are the annotations that are the control plane's.
var guarded = []string{policy.Resource, policy.StampKey, FargateAnnotation}

// carries is a CEL expression: the object has a guarded annotation.
func carries() string {
	each := make([]string, len(guarded))
	for i, key := range guarded {
		each[i] = fmt.Sprintf("'%s' in object.metadata.annotations", key)
	}
	return fmt.Sprintf("has(object.metadata.annotations) && (%s)", strings.Join(each, " || "))
}

// touches is a CEL expression: the request creates a pod with the annotation of a branch ENI or with a stamp (as the mutating
// webhook leaves it, or as somebody wrote it while that was away), or changes a guarded annotation of a pod.
func touches() string {
	value := func(object, key string) string {
		return fmt.Sprintf("(has(%[1]s.metadata.annotations) && '%[2]s' in %[1]s.metadata.annotations ? 'set:' + %[1]s.metadata.annotations['%[2]s'] : '')", object, key)
	}
	branch, fargate, stamp := policy.Resource, FargateAnnotation, policy.StampKey
	return fmt.Sprintf("oldObject == null ? (%s != '' || %s != '') : (%s != %s || %s != %s || %s != %s)",
		value("object", branch), value("object", stamp),
		value("oldObject", branch), value("object", branch), value("oldObject", fargate), value("object", fargate), value("oldObject", stamp), value("object", stamp))
}
