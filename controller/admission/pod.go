package admission

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strings"

	admissionv1 "k8s.io/api/admission/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/branchline-cni/branchline/controller/groups"
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
	d, err := groups.Of(ctx, h.Policies, h.Live, &pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	for _, err := range d.Invalid {
		h.Log.WarnContext(ctx, "policy can't be read", "error", err)
	}
	if !apply(&pod, d) {
		return admission.Allowed("")
	}
	changed, err := carry(req.Object.Raw, &pod, len(d.Groups) > 0 && len(pod.Spec.Containers) > 0)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, changed)
}

// carry takes what apply may have changed over into the object as it was sent: fields that a newer API server has and
// this program does not know stay as they are.
func carry(raw []byte, pod *corev1.Pod, selected bool) ([]byte, error) {
	o, err := object(raw)
	if err != nil {
		return nil, err
	}
	keys := []string{policy.StampKey}
	if policy.OnFargate(pod) {
		keys = append(keys, FargateAnnotation)
	}
	for _, key := range keys {
		if value, set := pod.Annotations[key]; set {
			err = errors.Join(err, unstructured.SetNestedField(o, value, "metadata", "annotations", key))
		} else {
			unstructured.RemoveNestedField(o, "metadata", "annotations", key)
		}
	}
	if selected && !policy.OnFargate(pod) {
		containers, _, _ := unstructured.NestedFieldNoCopy(o, "spec", "containers")
		list, ok := containers.([]any)
		if !ok || len(list) == 0 {
			return nil, errors.New("change the pod: it has no list of containers")
		}
		first, ok := list[0].(map[string]any)
		if !ok {
			return nil, errors.New("change the pod: its first container is no object")
		}
		r := pod.Spec.Containers[0].Resources
		for field, list := range map[string]corev1.ResourceList{"limits": r.Limits, "requests": r.Requests} {
			q := list[policy.Resource]
			err = errors.Join(err, unstructured.SetNestedField(first, q.String(), "resources", field, policy.Resource))
		}
	}
	if err != nil {
		return nil, fmt.Errorf("change the pod: %w", err)
	}
	changed, err := json.Marshal(o)
	if err != nil {
		return nil, fmt.Errorf("encode the pod: %w", err)
	}
	return changed, nil
}

// object reads any JSON object, numbers as they are written.
func object(raw []byte) (map[string]any, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	var o map[string]any
	if err := d.Decode(&o); err != nil {
		return nil, fmt.Errorf("read the object: %w", err)
	}
	return o, nil
}

// apply changes the pod by what the policies give it, and says whether anything changed. Whatever stamp it came with is
// not ours.
func apply(pod *corev1.Pod, d policy.Decision) (changed bool) {
	if policy.OnFargate(pod) {
		changed = annotate(pod, policy.StampKey, "", false)
		return annotate(pod, FargateAnnotation, strings.Join(d.Groups, ","), len(d.Groups) > 0) || changed
	}
	stamp, stamped := d.Stamp()
	changed = annotate(pod, policy.StampKey, stamp, stamped)
	if len(d.Groups) == 0 || len(pod.Spec.Containers) == 0 {
		return changed
	}
	one := resource.MustParse("1")
	r := &pod.Spec.Containers[0].Resources
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

// annotate sets an annotation, or takes it away, and says whether that changed anything.
func annotate(pod *corev1.Pod, key, value string, want bool) (changed bool) {
	have, set := pod.Annotations[key]
	switch {
	case !want && set:
		delete(pod.Annotations, key)
	case want && (!set || have != value):
		if pod.Annotations == nil {
			pod.Annotations = map[string]string{}
		}
		pod.Annotations[key] = value
	default:
		return false
	}
	return true
}

// ValidatePod answers /validate-v1-pod.
type ValidatePod struct {
	// Policies is the cache, Live the API server itself: as MutatePod has them.
	Policies, Live client.Reader
	Decoder        admission.Decoder
}

// Handle implements admission.Handler.
func (h *ValidatePod) Handle(ctx context.Context, req admission.Request) admission.Response {
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
	if req.Operation == admissionv1.Create {
		pod.Namespace = req.Namespace
		ours, err := h.stampIsOurs(ctx, &pod)
		if err != nil {
			return admission.Errored(http.StatusInternalServerError, err)
		}
		if !ours {
			return admission.Denied(fmt.Sprintf("the annotation %s of a new pod is set by the webhook mpod.vpc.k8s.aws alone, and this is not what it says: remove it from the manifest, or, if it is not there, try again, as the policies have just changed", policy.StampKey))
		}
	}
	return admission.Allowed("")
}

// stampIsOurs says whether a new pod's stamp is what the mutating webhook would have given: that may have been passed over,
// and the node goes by the stamp. A replica's memory may lag behind the other's, so only the API server's word denies.
func (h *ValidatePod) stampIsOurs(ctx context.Context, pod *corev1.Pod) (bool, error) {
	have, set := pod.Annotations[policy.StampKey]
	if !set || pod.Spec.HostNetwork {
		return true, nil
	}
	for _, read := range []client.Reader{h.Policies, h.Live} {
		d, err := groups.Of(ctx, read, h.Live, pod)
		if err != nil {
			if read == h.Live {
				return false, err
			}
			continue
		}
		if want, ok := d.Stamp(); ok && want == have && !policy.OnFargate(pod) {
			return true, nil
		}
	}
	return false, nil
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
		if differ(old, pod, policy.StampKey) {
			return fmt.Sprintf("nobody may change the annotation %s of a pod that exists: it says which SecurityGroupPolicies selected the pod when it was created", policy.StampKey)
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
