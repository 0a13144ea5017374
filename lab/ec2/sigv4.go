package ec2

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	sigAlgorithm = "AWS4-HMAC-SHA256"
	sigTimeForm  = "20060102T150405Z"
	// sigSkew is how far a request's clock may be off (AWS documents 5 minutes for EC2 and 15 for others).
	sigSkew = 5 * time.Minute
)

// signature is a parsed Authorization header (AWS Signature Version 4).
type signature struct {
	keyID, date, region, service string
	headers                      []string // signed, in lower case, sorted
	sum                          string   // 64 hexadecimal digits
}

// parseAuthorization reads "AWS4-HMAC-SHA256 Credential=…/date/region/service/aws4_request, SignedHeaders=…, Signature=…".
func parseAuthorization(h string) (signature, error) {
	rest, ok := strings.CutPrefix(h, sigAlgorithm)
	if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '\t') {
		return signature{}, errors.New("not " + sigAlgorithm)
	}
	fields := make(map[string]string)
	for part := range strings.SplitSeq(rest, ",") {
		k, v, ok := strings.Cut(strings.TrimSpace(part), "=")
		if !ok || v == "" {
			return signature{}, fmt.Errorf("malformed part %q", part)
		}
		if _, dup := fields[k]; dup {
			return signature{}, fmt.Errorf("%s is given twice", k)
		}
		fields[k] = v
	}
	for _, k := range []string{"Credential", "SignedHeaders", "Signature"} {
		if fields[k] == "" {
			return signature{}, fmt.Errorf("%s is missing", k)
		}
	}
	scope := strings.Split(fields["Credential"], "/")
	if len(scope) != 5 || slices.Contains(scope, "") || scope[4] != "aws4_request" {
		return signature{}, fmt.Errorf("credential scope %q: want key/date/region/service/aws4_request", fields["Credential"])
	}
	if _, err := time.Parse("20060102", scope[1]); err != nil {
		return signature{}, fmt.Errorf("credential scope: date: %w", err)
	}
	s := signature{keyID: scope[0], date: scope[1], region: scope[2], service: scope[3], sum: fields["Signature"]}
	if raw, err := hex.DecodeString(s.sum); err != nil || len(raw) != sha256.Size {
		return signature{}, errors.New("signature is not 64 hexadecimal digits")
	}
	s.headers = strings.Split(fields["SignedHeaders"], ";")
	for i, n := range s.headers {
		if n == "" || n != strings.ToLower(n) || (i > 0 && s.headers[i-1] >= n) {
			return signature{}, errors.New("signed headers are not sorted lower-case names")
		}
	}
	if !slices.Contains(s.headers, "host") || !slices.Contains(s.headers, "x-amz-date") {
		return signature{}, errors.New("host and x-amz-date have to be signed")
	}
	return s, nil
}

// verify says whether the request was signed with the secret. now is the server's clock.
func (s signature) verify(req *http.Request, body []byte, secret string, now time.Time) error {
	at, err := time.Parse(sigTimeForm, req.Header.Get("X-Amz-Date"))
	if err != nil {
		return fmt.Errorf("x-amz-date: %w", err)
	}
	if at.Format("20060102") != s.date {
		return errors.New("the date of the credential scope is not that of x-amz-date")
	}
	if d := now.Sub(at); d > sigSkew || d < -sigSkew {
		return errSkew
	}
	canonical := s.canonicalRequest(req, body)
	digest := sha256.Sum256([]byte(canonical))
	scope := strings.Join([]string{s.date, s.region, s.service, "aws4_request"}, "/")
	toSign := strings.Join([]string{sigAlgorithm, req.Header.Get("X-Amz-Date"), scope, hex.EncodeToString(digest[:])}, "\n")
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.date, s.region, s.service, "aws4_request", toSign} {
		m := hmac.New(sha256.New, key)
		m.Write([]byte(part))
		key = m.Sum(nil)
	}
	if subtle.ConstantTimeCompare([]byte(hex.EncodeToString(key)), []byte(s.sum)) != 1 {
		return errors.New("the signature does not match")
	}
	return nil
}

var errSkew = errors.New("the request's clock is too far off")

func (s signature) canonicalRequest(req *http.Request, body []byte) string {
	path := req.URL.EscapedPath()
	if path == "" {
		path = "/"
	}
	segments := strings.Split(path, "/")
	for i := range segments {
		segments[i] = awsEscape(segments[i]) // every service but S3 escapes the path a second time
	}
	var query []string
	for k, vals := range req.URL.Query() {
		for _, v := range vals {
			query = append(query, awsEscape(k)+"="+awsEscape(v))
		}
	}
	slices.Sort(query)
	var headers strings.Builder
	for _, name := range s.headers {
		headers.WriteString(name + ":" + headerValue(req, name) + "\n")
	}
	sum := sha256.Sum256(body)
	return strings.Join([]string{
		req.Method, strings.Join(segments, "/"), strings.Join(query, "&"),
		headers.String(), strings.Join(s.headers, ";"), hex.EncodeToString(sum[:]),
	}, "\n")
}

// headerValue gives a header as it is signed. net/http takes two of them out of the map.
func headerValue(req *http.Request, name string) string {
	switch name {
	case "host":
		return req.Host
	case "content-length":
		return strconv.FormatInt(req.ContentLength, 10)
	}
	vals := slices.Clone(req.Header.Values(name))
	for i := range vals {
		vals[i] = strings.Join(strings.Fields(vals[i]), " ")
	}
	return strings.Join(vals, ",")
}

// awsEscape escapes all but RFC 3986's unreserved characters.
func awsEscape(s string) string {
	return strings.NewReplacer("+", "%20", "%7E", "~").Replace(url.QueryEscape(s))
}
