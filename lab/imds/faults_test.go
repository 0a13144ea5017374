package imds

import (
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestScriptedFailuresHitWhatTheyAreFor(t *testing.T) {
	var f Faults
	h := f.Handler(Handler(fixed{}, nil))
	_, token := do(t, h, "PUT", "/latest/api/token", ttlHeader, "60")
	get := func(path string) (int, string) { return do(t, h, "GET", path, tokenHeader, token) }
	f.Add(Fault{Path: "/latest/meta-data/network", After: 1, Times: 2, Status: http.StatusServiceUnavailable})
	f.Add(Fault{Path: "/latest/meta-data/mac", Body: "no MAC"})
	const macs = "/latest/meta-data/network/interfaces/macs/"
	for i, want := range []int{200, 503, 503, 200} {
		if code, _ := get(macs); code != want {
			t.Errorf("request %d: %d, want %d", i, code, want)
		}
	}
	if code, body := get("/latest/meta-data/mac"); code != 200 || body != "no MAC" {
		t.Errorf("%d %q", code, body)
	}
	if code, body := get("/latest/meta-data/instance-id"); code != 200 || body != "i-1" {
		t.Errorf("another key: %d %q", code, body)
	}
	f.Add(Fault{Drop: true, Times: -1})
	func() {
		defer func() {
			if p := recover(); p != http.ErrAbortHandler {
				t.Errorf("the connection is not closed: %v", p)
			}
		}()
		h.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", macs, nil))
	}()
	f.Clear()
	if code, _ := get(macs); code != 200 {
		t.Errorf("%d after all is cleared", code)
	}
}
