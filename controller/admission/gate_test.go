package admission

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

// An answer of its own, before the policies are known, would be a wrong one: as a failed server it leaves the decision
// to the failure policy.
func TestNothingIsAnsweredBeforeThePoliciesAreKnown(t *testing.T) {
	for _, synced := range []bool{false, true} {
		asked := false
		h := WhenSynced(func(context.Context) bool { return synced }, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { asked = true }))
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(http.MethodPost, PathMutatePod, nil))
		if asked != synced || (w.Code == http.StatusServiceUnavailable) == synced {
			t.Errorf("synced %v: asked %v, code %d", synced, asked, w.Code)
		}
	}
}
