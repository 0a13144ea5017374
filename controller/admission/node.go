package admission

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"reflect"

	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"
)

// AgentUser is the node agent's identity.
const AgentUser = "system:serviceaccount:kube-system:aws-node"

// The labels of a Node that are the agent's.
var agentLabels = []string{"vpc.amazonaws.com/has-trunk-attached", "vpc.amazonaws.com/eniConfig"}

// ValidateNode answers /validate-v1-node.
type ValidateNode struct{}

// Handle implements admission.Handler.
func (h *ValidateNode) Handle(_ context.Context, req admission.Request) admission.Response {
	if req.UserInfo.Username != AgentUser {
		return admission.Allowed("")
	}
	// Read without a type: a field that only a newer API server knows counts like any other.
	old, err := object(req.OldObject.Raw)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("the node as it was: %w", err))
	}
	node, err := object(req.Object.Raw)
	if err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("the node: %w", err))
	}
	if !onlyLabels(old, node) {
		return admission.Denied(fmt.Sprintf("%s may change nothing on node %s but its labels %v", AgentUser, req.Name, agentLabels))
	}
	return admission.Allowed("")
}

// onlyLabels says whether two versions of a node differ in nothing but the agent's labels. What the API server keeps
// books with does not count.
func onlyLabels(old, node map[string]any) bool {
	strip := func(n map[string]any) map[string]any {
		n = maps.Clone(n)
		m, ok := n["metadata"].(map[string]any)
		if !ok {
			return n
		}
		m = maps.Clone(m)
		n["metadata"] = m
		for _, f := range []string{"managedFields", "resourceVersion", "generation"} {
			delete(m, f)
		}
		if labels, ok := m["labels"].(map[string]any); ok {
			labels = maps.Clone(labels)
			for _, l := range agentLabels {
				delete(labels, l)
			}
			m["labels"] = labels
		}
		if labels, ok := m["labels"].(map[string]any); ok && len(labels) == 0 {
			delete(m, "labels")
		}
		return n
	}
	return reflect.DeepEqual(strip(old), strip(node))
}
