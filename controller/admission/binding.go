package admission

import (
	"context"
	"fmt"
	"net/http"

	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// ValidateBinding answers /validate-v1-binding: the API server puts a binding's annotations on its pod, past what an update
// of the pod has to pass.
type ValidateBinding struct{}

// Handle implements admission.Handler.
func (h *ValidateBinding) Handle(_ context.Context, req admission.Request) admission.Response {
	o, err := object(req.Object.Raw)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("the binding: %w", err))
	}
	annotations, _, err := unstructured.NestedMap(o, "metadata", "annotations")
	if err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("the binding's annotations: %w", err))
	}
	for _, key := range guarded {
		if _, set := annotations[key]; set {
			return admission.Denied(fmt.Sprintf("a binding may not carry the annotation %s, which it would put on the pod: only the VPC resource controller sets it", key))
		}
	}
	return admission.Allowed("")
}
