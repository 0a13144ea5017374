package admission

import (
	"context"
	"fmt"
	"maps"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// AgentUser is the node agent's identity.
const AgentUser = "system:serviceaccount:kube-system:aws-node"

// The labels of a Node that are the agent's.
var agentLabels = []string{"vpc.amazonaws.com/has-trunk-attached", "vpc.amazonaws.com/eniConfig"}

// ValidateNode answers /validate-v1-node.
type ValidateNode struct {
	Decoder admission.Decoder
}

// Handle implements admission.Handler.
func (h *ValidateNode) Handle(_ context.Context, req admission.Request) admission.Response {
	if req.UserInfo.Username != AgentUser {
		return admission.Allowed("")
	}
	var old, node corev1.Node
	if err := h.Decoder.DecodeRaw(req.OldObject, &old); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the node as it was: %w", err))
	}
	if err := h.Decoder.Decode(req, &node); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("read the node: %w", err))
	}
	if !onlyLabels(&old, &node) {
		return admission.Denied(fmt.Sprintf("%s may change nothing on node %s but its labels %v", AgentUser, node.Name, agentLabels))
	}
	return admission.Allowed("")
}

// onlyLabels says whether two versions of a node differ in nothing but the agent's labels. What the API server keeps
// books with does not count.
func onlyLabels(old, node *corev1.Node) bool {
	strip := func(n *corev1.Node) *corev1.Node {
		n = n.DeepCopy()
		n.ManagedFields, n.ResourceVersion, n.Generation = nil, "", 0
		labels := maps.Clone(n.Labels)
		for _, l := range agentLabels {
			delete(labels, l)
		}
		n.Labels = labels
		return n
	}
	return equality.Semantic.DeepEqual(strip(old), strip(node))
}
