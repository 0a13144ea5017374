package admission

import (
	"context"
	"net/http"
)

// WhenSynced answers only once the caches are complete, and until the API server hangs up. Without them it fails as a
// server, which leaves the decision to the failure policy; an answer of its own would be a denial.
func WhenSynced(synced func(context.Context) bool, next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if !synced(req.Context()) {
			http.Error(w, "the SecurityGroupPolicies are still being read", http.StatusServiceUnavailable)
			return
		}
		next.ServeHTTP(w, req)
	})
}
