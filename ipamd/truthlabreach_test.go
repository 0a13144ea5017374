package ipamd

import (
	"bytes"
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path"
	"regexp"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/branchline-cni/branchline/aws"
	"github.com/branchline-cni/branchline/ipamd/enis"
	labimds "github.com/branchline-cni/branchline/lab/imds"
)

// reach gives the agent the clients that it has on an instance, without a network in between.
func (l *labCloud) reach(h *hands) (enis.Metadata, EC2) {
	r := &labReach{l: l, h: h, ec2: direct{l.region.Handler()}, imds: direct{l.metadata.Handler(labimds.Handler(l.region.Metadata(l.id), time.Now))}}
	o := aws.Options{Region: "us-west-2", Endpoint: atEC2, IMDSEndpoint: atIMDS, IPv6: l.ipv6, Transport: r}
	client, err := aws.NewEC2(context.Background(), o)
	if err != nil {
		l.s.t.Fatalf("%v", err)
	}
	return aws.NewIMDS(o), client
}

// answers are how EC2 and IMDS answer, whatever is asked; with only EC2 does so where that is the API, and IMDS where it is the
// path's last part.
type answers struct {
	ec2, imds atomic.Int32
	only      atomic.Pointer[string]
}

func (a *answers) of(m *atomic.Int32, what string) mood {
	if only := a.only.Load(); only != nil && *only != what {
		return usual
	}
	return mood(m.Load())
}

type mood int32

const (
	usual   mood = iota
	silent       // no answer ever
	garbled      // a proxy's page
	away         // nobody listens
	odd          // prefixes that are none
	empty        // without any prefix
)

// labReach is one agent's way to both.
type labReach struct {
	l         *labCloud
	h         *hands
	ec2, imds http.RoundTripper
}

func (r *labReach) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	if err := sleep(req.Context(), r.l.latency); err != nil {
		return nil, err
	}
	if r.h.dead() {
		return nil, errKilled
	}
	to, how, what := r.ec2, &r.l.answers.ec2, ""
	if strings.HasPrefix(req.URL.String(), atIMDS) {
		to, how, what = r.imds, &r.l.answers.imds, path.Base(req.URL.Path)
	} else if req, what, err = apiOf(req); err != nil {
		return nil, err
	}
	r.l.mu.Lock()
	r.l.asked[what]++
	r.l.mu.Unlock()
	answer := r.l.answers.of(how, what)
	switch answer {
	case silent:
		<-req.Context().Done()
		return nil, req.Context().Err()
	case garbled:
		return &http.Response{StatusCode: http.StatusOK, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, Header: http.Header{"Content-Type": {"text/html"}}, Body: io.NopCloser(strings.NewReader("<html><p>Please log in")), Request: req}, nil
	case away:
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ECONNREFUSED}
	}
	if resp, err = to.RoundTrip(req); err == nil {
		err = answer.bend(resp)
	}
	if err := sleep(req.Context(), r.l.latency); err != nil {
		return nil, err
	}
	if r.h.dead() {
		return nil, errKilled
	}
	return resp, err
}

var aPrefix, aPrefixInAList = regexp.MustCompile(`[0-9a-f:]+/80`), regexp.MustCompile(`<item>[0-9a-f:]+/80</item>`)

// bend changes what an answer says of IPv6 prefixes.
func (m mood) bend(resp *http.Response) error {
	if m != odd && m != empty {
		return nil
	}
	b, err := io.ReadAll(resp.Body)
	if m == odd {
		b = aPrefix.ReplaceAll(b, []byte("2001:db8::zz/80"))
	} else {
		b = aPrefixInAList.ReplaceAll(b, nil)
	}
	resp.Body, resp.ContentLength = io.NopCloser(bytes.NewReader(b)), int64(len(b))
	return err
}

// apiOf is what a request asks of EC2. The request is given back, to be sent.
func apiOf(req *http.Request) (again *http.Request, api string, err error) {
	if req.Body == nil {
		return req, "", nil
	}
	b, err := io.ReadAll(req.Body)
	if err != nil {
		return req, "", err
	}
	again = req.Clone(req.Context())
	again.Body = io.NopCloser(bytes.NewReader(b))
	form, err := url.ParseQuery(string(b))
	return again, form.Get("Action"), err
}

// attempts is how often agents have asked for something: an API, or a key of IMDS.
func (l *labCloud) attempts(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.asked[what]
}

// direct calls a handler in the place of a server.
type direct struct{ h http.Handler }

func (d direct) RoundTrip(req *http.Request) (resp *http.Response, err error) {
	in := req.Clone(req.Context())
	if in.Host == "" {
		in.Host = in.URL.Host
	}
	if in.Body == nil {
		in.Body = http.NoBody
	}
	in.RequestURI = in.URL.RequestURI()
	defer in.Body.Close()
	defer func() {
		switch p := recover(); p {
		case nil:
		case http.ErrAbortHandler:
			resp, err = nil, io.ErrUnexpectedEOF
		default:
			panic(p)
		}
	}()
	w := httptest.NewRecorder()
	d.h.ServeHTTP(w, in)
	return w.Result(), nil
}
