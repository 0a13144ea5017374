package imds

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"
)

type fixed struct{ gone bool }

func (f fixed) Instance() (Instance, bool) {
	mac, _ := net.ParseMAC("06:00:00:00:00:01")
	return Instance{
		ID: "i-1", Type: "m5.large", Region: "us-west-2", AvailabilityZone: "us-west-2a", Role: "node", AccountID: "111122223333",
		Interfaces: []Interface{{MAC: mac, ENIID: "eni-1", Addresses: []netip.Addr{netip.MustParseAddr("192.168.0.4"), netip.MustParseAddr("192.168.0.5")},
			SubnetCIDR: netip.MustParsePrefix("192.168.0.0/19"), SecurityGroupIDs: []string{"sg-1", "sg-2"}}},
	}, !f.gone
}

func (f fixed) Credentials(role string) (Credentials, bool) {
	return Credentials{AccessKeyID: "AK", Token: "T"}, role == "node"
}

func do(t *testing.T, h http.Handler, method, path string, header ...string) (int, string) {
	t.Helper()
	req := httptest.NewRequest(method, path, nil)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	rec := httptest.NewRecorder()
	h.ServeHTTP(rec, req)
	b, _ := io.ReadAll(rec.Body)
	return rec.Code, string(b)
}

func TestATokenIsNeededAndEnds(t *testing.T) {
	now := time.Unix(1e9, 0)
	h := Handler(fixed{}, func() time.Time { return now })
	for name, tc := range map[string]struct {
		method, path string
		header       []string
		want         int
	}{
		"no token":          {"GET", "/latest/meta-data/instance-id", nil, 401},
		"made-up token":     {"GET", "/latest/meta-data/instance-id", []string{tokenHeader, "x"}, 401},
		"token by GET":      {"GET", "/latest/api/token", []string{ttlHeader, "60"}, 405},
		"no TTL":            {"PUT", "/latest/api/token", nil, 400},
		"TTL too long":      {"PUT", "/latest/api/token", []string{ttlHeader, "21601"}, 400},
		"TTL zero":          {"PUT", "/latest/api/token", []string{ttlHeader, "0"}, 400},
		"behind a proxy":    {"PUT", "/latest/api/token", []string{ttlHeader, "60", "X-Forwarded-For", "10.0.0.1"}, 403},
		"posting somewhere": {"POST", "/latest/meta-data/", nil, 405},
	} {
		if code, _ := do(t, h, tc.method, tc.path, tc.header...); code != tc.want {
			t.Errorf("%s: %d, want %d", name, code, tc.want)
		}
	}
	_, token := do(t, h, "PUT", "/latest/api/token", ttlHeader, "60")
	if code, body := do(t, h, "GET", "/latest/meta-data/instance-id", tokenHeader, token); code != 200 || body != "i-1" {
		t.Errorf("%d %q", code, body)
	}
	now = now.Add(61 * time.Second)
	if code, _ := do(t, h, "GET", "/latest/meta-data/instance-id", tokenHeader, token); code != 401 {
		t.Errorf("an old token: %d", code)
	}
}

func TestTheTreeHasKeysAndDirectories(t *testing.T) {
	h := Handler(fixed{}, nil)
	_, token := do(t, h, "PUT", "/latest/api/token", ttlHeader, "60")
	const mac = "/latest/meta-data/network/interfaces/macs/06:00:00:00:00:01/"
	for path, want := range map[string]string{
		"/":                            "1.0\nlatest",
		"/latest/":                     "dynamic\nmeta-data",
		"/latest/meta-data/mac":        "06:00:00:00:00:01",
		"/latest/meta-data/local-ipv4": "192.168.0.4",
		"/latest/meta-data/network/interfaces/macs/":    "06:00:00:00:00:01/",
		"/latest/meta-data/network/interfaces/macs":     "06:00:00:00:00:01/",
		"/latest/meta-data/iam/security-credentials/":   "node",
		"/latest/meta-data/placement/availability-zone": "us-west-2a",
		mac + "local-ipv4s":                             "192.168.0.4\n192.168.0.5",
		mac + "device-number":                           "0",
		mac + "subnet-ipv4-cidr-block":                  "192.168.0.0/19",
		mac + "security-group-ids":                      "sg-1\nsg-2",
	} {
		got, body := do(t, h, "GET", path, tokenHeader, token)
		if path == "/latest/" {
			body = strings.ReplaceAll(body, "/", "")
		}
		if got != 200 || body != want {
			t.Errorf("%s: %d %q, want %q", path, got, body, want)
		}
	}
	for _, path := range []string{"/latest/meta-data/nothing", "/latestx", mac + "network-card", "/latest/meta-data/iam/security-credentials/other", "/latest/user-data"} {
		if code, _ := do(t, h, "GET", path, tokenHeader, token); code != 404 {
			t.Errorf("%s: %d, want 404", path, code)
		}
	}
	if _, body := do(t, h, "GET", "/latest/meta-data/iam/security-credentials/node", tokenHeader, token); !strings.Contains(body, `"AccessKeyId": "AK"`) {
		t.Errorf("%s", body)
	}
}

func TestAGoneInstanceAnswersNothing(t *testing.T) {
	if code, _ := do(t, Handler(fixed{gone: true}, nil), "PUT", "/latest/api/token", ttlHeader, "60"); code != 404 {
		t.Errorf("%d", code)
	}
}

func TestTokensDoNotFillTheMemory(t *testing.T) {
	h := Handler(fixed{}, nil).(*handler)
	for range maxTokens + 50 {
		h.issue(time.Minute)
	}
	if n := len(h.tokens); n > maxTokens {
		t.Errorf("%d tokens", n)
	}
}

func FuzzPath(f *testing.F) {
	f.Add("/latest/meta-data/../../x")
	f.Add("//latest//meta-data//")
	h := Handler(fixed{}, nil).(*handler)
	inst, _ := fixed{}.Instance()
	f.Fuzz(func(t *testing.T, p string) {
		if v, ok := h.value(inst, p); !ok && v != "" {
			t.Fatalf("%q: %q", p, v)
		}
	})
}
