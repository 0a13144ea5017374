package imds

import (
	"crypto/rand"
	"encoding/base64"
	"io"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

const (
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	maxTTL      = 6 * time.Hour
	// maxTokens bounds the memory that a client which never reuses a token can take; the oldest go first.
	maxTokens = 1024
)

// Handler serves one instance. now gives the age of tokens; nil is time.Now.
//
// The limit on hops is a property of IP packets: whoever carries the answers (lab/vpc) sets the TTL from
// Instance.HopLimit on the answer to the token request. Requests that name a proxy are refused here, as on AWS.
func Handler(v View, now func() time.Time) http.Handler {
	if now == nil {
		now = time.Now
	}
	return &handler{view: v, now: now, tokens: make(map[string]time.Time)}
}

type handler struct {
	view View
	now  func() time.Time

	mu     sync.Mutex
	tokens map[string]time.Time // token -> expiry
}

func (h *handler) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	w.Header().Set("Server", "EC2ws")
	w.Header().Set("Content-Type", "text/plain")
	if req.URL.Path == "/latest/api/token" {
		h.token(w, req)
		return
	}
	if req.Method != http.MethodGet && req.Method != http.MethodHead {
		w.Header().Set("Allow", "OPTIONS, GET, HEAD")
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	left, ok := h.valid(req.Header.Get(tokenHeader))
	if !ok {
		http.Error(w, "Unauthorized", http.StatusUnauthorized)
		return
	}
	inst, ok := h.view.Instance()
	if !ok {
		http.NotFound(w, req)
		return
	}
	body, ok := h.value(inst, req.URL.Path)
	if !ok {
		http.NotFound(w, req)
		return
	}
	w.Header().Set(ttlHeader, strconv.Itoa(int(left/time.Second)))
	_, _ = io.WriteString(w, body) // the client went away; nobody is left to tell
}

func (h *handler) value(inst Instance, urlPath string) (string, bool) {
	if strings.Trim(urlPath, "/") == "" {
		return "1.0\nlatest", true
	}
	rest, ok := strings.CutPrefix(urlPath, "/latest")
	if !ok || (rest != "" && rest[0] != '/') {
		return "", false
	}
	if inst.Role != "" && strings.TrimPrefix(rest, "/meta-data/iam/security-credentials/") == inst.Role {
		c, ok := h.view.Credentials(inst.Role)
		if !ok {
			return "", false
		}
		return credentialsDocument(c), true
	}
	return metadata(inst).lookup(rest)
}

func (h *handler) token(w http.ResponseWriter, req *http.Request) {
	if req.Method != http.MethodPut {
		w.Header().Set("Allow", "OPTIONS, PUT")
		http.Error(w, "Method Not Allowed", http.StatusMethodNotAllowed)
		return
	}
	if req.Header.Get("X-Forwarded-For") != "" {
		http.Error(w, "Forbidden", http.StatusForbidden)
		return
	}
	seconds, err := strconv.Atoi(req.Header.Get(ttlHeader))
	ttl := time.Duration(seconds) * time.Second
	if err != nil || seconds < 1 || seconds > int(maxTTL/time.Second) {
		http.Error(w, "Bad Request", http.StatusBadRequest)
		return
	}
	if _, ok := h.view.Instance(); !ok {
		http.NotFound(w, req)
		return
	}
	token := h.issue(ttl)
	w.Header().Set(ttlHeader, strconv.Itoa(seconds))
	_, _ = io.WriteString(w, token) // as above
}

func (h *handler) issue(ttl time.Duration) string {
	b := make([]byte, 42)
	_, _ = rand.Read(b) // crypto/rand never fails
	token := base64.URLEncoding.EncodeToString(b)

	h.mu.Lock()
	defer h.mu.Unlock()
	now := h.now()
	if len(h.tokens) >= maxTokens {
		maps.DeleteFunc(h.tokens, func(_ string, expires time.Time) bool { return !expires.After(now) })
	}
	if len(h.tokens) >= maxTokens {
		oldest := slices.MinFunc(slices.Collect(maps.Keys(h.tokens)), func(a, b string) int { return h.tokens[a].Compare(h.tokens[b]) })
		delete(h.tokens, oldest)
	}
	h.tokens[token] = now.Add(ttl)
	return token
}

func (h *handler) valid(token string) (left time.Duration, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	expires, ok := h.tokens[token]
	if !ok {
		return 0, false
	}
	left = expires.Sub(h.now())
	if left <= 0 {
		delete(h.tokens, token)
		return 0, false
	}
	return left, true
}

func sorted(set map[string]bool) []string { return slices.Sorted(maps.Keys(set)) }
