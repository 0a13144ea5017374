package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/branchline-cni/branchline/api/v1beta1"
	"github.com/branchline-cni/branchline/policy"
)

// FargateAnnotation carries the joined groups of a pod on Fargate.
const FargateAnnotation = "fargate.amazonaws.com/pod-sg"

// Who may write the annotations: the hosted controller, and ours.
var controllers = map[string]bool{
	"eks:vpc-resource-controller":                                   true,
	"system:serviceaccount:kube-system:vpc-resource-controller":     true,
	"system:serviceaccount:kube-system:eks-vpc-resource-controller": true,
}

// MutatePod answers /mutate-v1-pod.
type MutatePod struct {
	// Policies is the cache; WhenSynced keeps requests away until it is complete.
	Policies client.Reader
	// Live reads ServiceAccounts, one by one and only where a policy selects by them.
	Live    client.Reader
	Decoder admission.Decoder
	Log     *slog.Logger
}

// Handle implements admission.Handler.
func (h *MutatePod) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Operation != admissionv1.Create {
		return admission.Allowed("")
	}
	var pod corev1.Pod
	if err := h.Decoder.Decode(req, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the pod: %w", err))
	}
	if pod.Spec.HostNetwork {
		return admission.Allowed("the pod is on the host's network")
	}
	pod.Namespace = req.Namespace // the object's own field may still be empty
	groups, err := h.groups(ctx, &pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	if !apply(&pod, groups) {
		return admission.Allowed("")
	}
	changed, err := json.Marshal(&pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("encode the pod: %w", err))
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, changed)
}

func (h *MutatePod) groups(ctx context.Context, pod *corev1.Pod) ([]string, error) {
	var policies v1beta1.SecurityGroupPolicyList
	if err := h.Policies.List(ctx, &policies, client.InNamespace(pod.Namespace)); err != nil {
		return nil, fmt.Errorf("list the policies of namespace %s: %w", pod.Namespace, err)
	}
	var sa corev1.ServiceAccount
	if policy.NeedsServiceAccount(policies.Items, pod) {
		name := pod.Spec.ServiceAccountName
		if name == "" {
			name = "default"
		}
		if err := h.Live.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: name}, &sa); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("read ServiceAccount %s/%s: %w", pod.Namespace, name, err)
		}
	}
	d := policy.Match(policies.Items, pod, sa.Labels)
	for _, err := range d.Invalid {
		h.Log.WarnContext(ctx, "policy can't be read", "error", err)
	}
	return d.Groups, nil
}

// apply changes the pod by what the policies give it, and says whether anything changed.
func apply(pod *corev1.Pod, groups []string) bool {
	if policy.OnFargate(pod) {
		want, have := strings.Join(groups, ","), pod.Annotations[FargateAnnotation]
		_, set := pod.Annotations[FargateAnnotation]
		switch {
		case len(groups) == 0 && set:
			delete(pod.Annotations, FargateAnnotation)
		case len(groups) > 0 && have != want:
			if pod.Annotations == nil {
				pod.Annotations = map[string]string{}
			}
			pod.Annotations[FargateAnnotation] = want
		default:
			return false
		}
		return true
	}
	if len(groups) == 0 || len(pod.Spec.Containers) == 0 {
		return false
	}
	one := resource.MustParse("1")
	r := &pod.Spec.Containers[0].Resources
	changed := false
	for _, list := range []*corev1.ResourceList{&r.Limits, &r.Requests} {
		if q, ok := (*list)[policy.Resource]; ok && q.Cmp(one) == 0 {
			continue
		}
		if *list == nil {
			*list = corev1.ResourceList{}
		}
		(*list)[policy.Resource] = one
		changed = true
	}
	return changed
}

// ValidatePod answers /validate-v1-pod.
type ValidatePod struct {
	Decoder admission.Decoder
}

// Handle implements admission.Handler.
func (h *ValidatePod) Handle(_ context.Context, req admission.Request) admission.Response {
	var pod, old corev1.Pod
	if err := h.Decoder.Decode(req, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the pod: %w", err))
	}
	if req.Operation == admissionv1.Update {
		if err := h.Decoder.DecodeRaw(req.OldObject, &old); err != nil {
			return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the pod as it was: %w", err))
		}
	}
	if reason := refuse(req.Operation, req.UserInfo.Username, &old, &pod); reason != "" {
		return admission.Denied(reason)
	}
	return admission.Allowed("")
}

func refuse(op admissionv1.Operation, user string, old, pod *corev1.Pod) string {
	switch op {
	case admissionv1.Create:
		if _, set := pod.Annotations[policy.Resource]; set {
			return fmt.Sprintf("a new pod may not carry the annotation %s: the VPC resource controller sets it; remove it from the manifest", policy.Resource)
		}
	case admissionv1.Update:
		if differ(old, pod, policy.Resource) && !controllers[user] {
			return fmt.Sprintf("only the VPC resource controller may change the annotation %s, not %s", policy.Resource, user)
		}
		if differ(old, pod, FargateAnnotation) {
			return fmt.Sprintf("nobody may change the annotation %s of a pod that exists: change the SecurityGroupPolicy and create the pod again", FargateAnnotation)
		}
	}
	return ""
}

func differ(old, pod *corev1.Pod, key string) bool {
	was, had := old.Annotations[key]
	is, has := pod.Annotations[key]
	return was != is || had != has
}
