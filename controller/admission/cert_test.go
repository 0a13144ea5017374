package admission

import (
	"bytes"
	"testing"
	"time"
)

func TestCertificatesAreKeptWhileTheyServe(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	first, err := Issue(nil, []string{"vpc.kube-system.svc", "10.0.0.1"}, now)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.TLS(); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		what         string
		have         *Certificates
		hosts        []string
		at           time.Time
		same, sameCA bool
	}{
		{"as it was", first, []string{"10.0.0.1"}, now.AddDate(1, 0, 0), true, true},
		{"another host", first, []string{"10.0.0.2"}, now, false, true},
		{"expired", first, []string{"10.0.0.1"}, now.Add(validity + time.Hour), false, false},
		{"no CA key", &Certificates{CA: first.CA, Cert: first.Cert}, []string{"10.0.0.1"}, now, false, false},
		{"garbage", &Certificates{CA: []byte("x"), CAKey: []byte("x"), Cert: []byte("x"), Key: []byte("x")}, []string{"10.0.0.1"}, now, false, false},
		{"another's CA", &Certificates{CA: other(t, now).CA, CAKey: other(t, now).CAKey, Cert: first.Cert, Key: first.Key}, []string{"10.0.0.1"}, now, false, false},
	} {
		got, err := Issue(tt.have, tt.hosts, tt.at)
		if err != nil {
			t.Fatalf("%s: %v", tt.what, err)
		}
		if (got == tt.have) != tt.same || bytes.Equal(got.CA, first.CA) != tt.sameCA || !serves(got, tt.hosts, tt.at) {
			t.Errorf("%s: same %v, same CA %v, serves %v", tt.what, got == tt.have, bytes.Equal(got.CA, first.CA), serves(got, tt.hosts, tt.at))
		}
	}
}

func other(t *testing.T, now time.Time) *Certificates {
	t.Helper()
	c, err := Issue(nil, []string{"other"}, now)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
