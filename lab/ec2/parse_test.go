package ec2

import (
	"errors"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"
)

func FuzzForm(f *testing.F) {
	for _, s := range []string{"", "Action=DescribeVpcs&Version=2016-11-15", "Filter.1.Name=a&Filter.1.Value.2=b&Filter.1.Value.10=c",
		"A.1=x&A=y", "A..b=1", "%zz", "a=1&a=2", "T.member.1=x", "A.0=1&A.01=2&A.99999999999999999999=3"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, body string) {
		p, err := parseForm(body)
		if err != nil {
			var ae *apiError
			if !errors.As(err, &ae) {
				t.Fatalf("not an API error: %v", err)
			}
			return
		}
		// What was decoded is what was sent.
		values, _ := url.ParseQuery(body)
		want := make(map[string]string)
		for k, v := range values {
			want[k] = v[0]
		}
		if got := p.flat(); !maps.Equal(got, want) {
			t.Fatalf("%q decoded to %v, want %v", body, got, want)
		}
		for _, n := range p.names() {
			p.strs(n)
		}
	})
}

func FuzzAuthorization(f *testing.F) {
	const sum = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	f.Add("AWS4-HMAC-SHA256 Credential=AK/20260101/us-west-2/ec2/aws4_request, SignedHeaders=host;x-amz-date, Signature=" + sum)
	f.Add("AWS4-HMAC-SHA256 Credential=AK/20260101/us-west-2/ec2/aws4_request,SignedHeaders=host,Signature=" + sum)
	f.Add("AWS4-HMAC-SHA256 Credential=////,SignedHeaders=;;,Signature=x")
	f.Add("Basic abc")
	f.Fuzz(func(t *testing.T, h string) {
		s, err := parseAuthorization(h)
		if err != nil {
			return
		}
		if s.keyID == "" || s.service == "" || s.region == "" || !slices.IsSorted(s.headers) || !slices.Contains(s.headers, "host") {
			t.Fatalf("accepted %q as %+v", h, s)
		}
		req := httptest.NewRequest(http.MethodPost, "/", nil)
		req.Header.Set("X-Amz-Date", s.date+"T000000Z")
		at, _ := time.Parse("20060102", s.date)
		if s.verify(req, nil, "secret", at) == nil {
			t.Fatal("a made-up signature was accepted")
		}
	})
}

func FuzzPolicy(f *testing.F) {
	f.Add(`{"Version":"2012-10-17","Statement":{"Effect":"Allow","Action":"ec2:*","Resource":"*"}}`)
	f.Add(`{"Statement":[{"Effect":"Deny","NotAction":["ec2:A*"],"NotResource":"x"}]}`)
	f.Add(`{"Statement":[]}`)
	for _, doc := range managedPolicies {
		f.Add(doc)
	}
	f.Fuzz(func(t *testing.T, doc string) {
		p, err := parsePolicy(doc)
		if err != nil {
			return
		}
		to := target{arn: "arn:aws:ec2:us-west-2:111122223333:vpc/vpc-1"}
		d := decide([]*policy{p}, "ec2:CreateVpc", to)
		denyAll := &policy{Statement: []statement{{Effect: "Deny", Action: []string{"*"}, Resource: []string{"*"}}}}
		if got := decide([]*policy{p, denyAll}, "ec2:CreateVpc", to); got != explicitDeny {
			t.Fatalf("a Deny lost: %v (alone %v)", got, d)
		}
	})
}

func TestMatchTakesWildcards(t *testing.T) {
	for _, tc := range []struct {
		s, pattern string
		want       bool
	}{
		{"", "", true}, {"", "*", true}, {"a", "", false}, {"abc", "a*c", true}, {"abc", "a?c", true}, {"ac", "a?c", false},
		{"aXbXc", "a*b*c", true}, {"aXbX", "a*b*c", false}, {"ec2:CreateVpc", "ec2:*", true}, {"aaa", "*a", true}, {"abcd", "*bc", false},
	} {
		if got := match(tc.s, tc.pattern); got != tc.want {
			t.Errorf("match(%q, %q) = %v", tc.s, tc.pattern, got)
		}
	}
	if long := strings.Repeat("a", 5000); match(long, strings.Repeat("*a", 200)+"b") {
		t.Error("matched")
	}
}

func TestBuiltInPoliciesParse(t *testing.T) {
	for arn, doc := range managedPolicies {
		if _, err := parsePolicy(doc); err != nil {
			t.Errorf("%s: %v", arn, err)
		}
	}
}
